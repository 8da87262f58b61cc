"""SIGTERM and SIGINT: what was accepted is finished, and the next start has nothing to replay (P4)."""

import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from kvactor.failpoints import reached
from tests.process.clients import CLOSED, Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.failpoints import HOLD, armed
from tests.process.servers import Server
from tests.process.writers import Load, check
from tests.sizes import size

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def test_a_stop_under_load_answers_or_closes_and_loses_nothing_acknowledged(
    start: Start, data_dir: Path, figure: Callable[[str], None]
) -> None:
    random = Random("told to stop")
    loads: list[Load] = []
    acknowledged = 0
    for number in range(size("stops")):
        server = start()
        with Load(server, f"stop{number}", 16, transactional=number % 3 == 1) as load:
            load.wait_for(random.randrange(100))
            server.send_signal(SIGNALS[number % 2])
            assert server.wait() == 0
            load.wait_for_close()
        assert load.statuses <= {200, 201, 503}
        loads.append(load)
        after = contents(data_dir)
        check(loads, after)
        acknowledged = sum(load.acknowledged for load in loads)
        assert after.folded == after.revision == acknowledged, "something was done and not answered"
        assert server.rest_of_output() == ""
        assert "ERROR" not in server.log
    assert acknowledged > 0
    figure(f"stopped under load: {len(loads)} times, {acknowledged} acknowledged writes, 0 lost")


@pytest.mark.parametrize("point", ["flush.written", "fold.written"])
def test_a_write_that_is_being_flushed_or_folded_when_told_to_stop_is_answered_and_folded(
    start: Start, data_dir: Path, point: str
) -> None:
    server = start("--memtable-size", "1", environ=armed(f"{point}=signal@1"))
    with Client(server) as client:
        assert client.set("key", "value")[:2] == (200, 1)
    assert server.wait() == 0
    after = contents(data_dir)
    assert (after.revision, after.folded, list(after.records)) == (1, 1, ["key"])


def begin_upload(client: Client) -> None:
    """Send a request, but for the end of its body, and return when its handler waits for that."""
    head = (
        "POST /set HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    )
    client.connection.send_raw(f'{head}{{"key": '.encode())
    # The server says "100 Continue" when it begins to read. Only looked at: the client skips it.
    assert client.connection.socket.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 100"


def test_a_stop_while_a_body_arrives_does_not_wait_for_the_rest(start: Start, data_dir: Path) -> None:
    # Longer than the test's patience: what ends it is not the time limits.
    server = start("--shutdown-timeout", "600", "--body-timeout", "600")
    with Client(server) as client:
        begin_upload(client)
        server.send_signal(signal.SIGTERM)
        status, _, body = client.receive()
        assert (status, body) == (503, {"error": "The server is shutting down. Nothing was done."})
        assert server.wait() == 0
    assert contents(data_dir).records == {}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once_a_server_that_cannot_finish(
    start: Start, data_dir: Path, number: signal.Signals
) -> None:
    server = start(environ=armed(f"flush.written={HOLD}"))
    with Client(server) as client:
        client.send("POST", "/set", {"key": "key", "value": "value"})
        server.wait_for_log(reached("flush.written"))
        server.send_signal(number)
        server.wait_for_log(f"{number.name}: finishing what was accepted")
        server.send_signal(number)
        assert server.wait() == 128 + number
        with pytest.raises(CLOSED):
            client.receive()
    assert "ending at once" in server.log
    assert contents(data_dir).records == {}


def held_up(server: Server) -> str:
    """Expect that a server ends by its deadline; return what has held it up, by its log."""
    assert server.wait() == 1
    *_, last = server.log.splitlines()
    found = re.search(
        r"CRITICAL kvactor\.cli: the stop has not finished after 0\.3 seconds, (.+)", last
    )
    assert found, server.log
    return found[1].removeprefix("the process ends at once; it waited for ")


#: A stop that is held up for no longer than the deadline.
IMPATIENT = ("--shutdown-timeout", "0.1", "--exit-timeout", "0.2")


@pytest.mark.parametrize("point", ["flush.before", "fold.before"])
def test_a_stop_while_the_disk_hangs_ends_at_the_deadline_and_logs_the_reason(
    start: Start, data_dir: Path, point: str
) -> None:
    server = start("--memtable-size", "1", *IMPATIENT, environ=armed(f"{point}={HOLD}"))
    with Client(server) as client:
        client.send("POST", "/set", {"key": "key", "value": "value"})
        server.wait_for_log(reached(point))
        server.send_signal(signal.SIGTERM)
        assert held_up(server) == "the owner: a flush or a fold is under way"
    assert list(contents(data_dir).records) == ([] if point == "flush.before" else ["key"])


def test_a_failed_flush_beside_a_fold_that_hangs_ends_the_process_at_the_deadline(
    start: Start, data_dir: Path
) -> None:
    points = armed(f"fold.written={HOLD}", "flush.before=error@2")
    server = start("--memtable-size", "1", *IMPATIENT, environ=points)
    with Client(server) as client:
        assert client.set("key", "value").status == 200
        server.wait_for_log(reached("fold.written"))
        assert client.set("lost", "value").status == 500
        # The loop's thread waits for that of the tree.
        assert held_up(server) == "the storage: a flush or a fold is under way"
    assert list(contents(data_dir).records) == ["key"]


#: A server that is told to stop as soon as its ready line can be read.
STOPPED_WHEN_READY = """
import os, signal, sys
from kvactor.cli import main

def write(line, write=sys.stdout.write):
    write(line)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGTERM)

sys.stdout.write = write
sys.exit(main())
"""


def test_a_stop_right_after_the_ready_line_exits_with_0(start: Start) -> None:
    server = start(program=("-c", STOPPED_WHEN_READY))
    assert server.wait() == 0


def test_an_open_transaction_is_rolled_back_by_a_stop(start: Start, data_dir: Path) -> None:
    server = start()
    with Client(server) as client:
        for _ in range(2):
            assert client.ask("POST", "/begin").status == 200
        assert client.set("uncommitted", 1).status == 200
        transaction = client.open()
        assert client.set("uncommitted in isolation", 1, transaction).status == 200
    assert server.stop() == 0
    assert contents(data_dir) == ({}, 0, 0)
    (warning,) = re.findall("WARNING.*", server.log)
    assert warning.endswith("the shared transaction was open at depth 2 and has been rolled back")


def test_the_last_line_of_the_log_says_at_which_revision_it_stopped(start: Start) -> None:
    server = start()
    with Client(server) as client:
        for number in range(3):
            assert client.set("key", number).status == 200
    assert server.stop() == 0
    assert "WARNING" not in server.log
    assert server.log.splitlines()[-1].endswith("INFO kvactor.cli: stopped at revision 3")
