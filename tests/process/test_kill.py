"""kill -9: what was acknowledged is there after the restart, and nothing uncommitted (P3)."""

import select
import signal
from pathlib import Path
from random import Random

import pytest

from tests.process.clients import CLOSED, Client, Load, check
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.failpoints import WRITE, failpoint, held
from tests.process.servers import Server, until

#: A memtable of a few writes, so that folds follow one another; and a short history, so that the
#: journal is trimmed all the time.
FOLDING = ("--memtable-size", "10000", "--history", "20")


def test_a_write_acknowledged_right_before_a_kill_is_there_after_the_restart(start: Start) -> None:
    server = start()
    with Client(server) as client:
        told = client.set("a key", "its value")
    server.kill()
    assert (told.status, told.revision) == (200, 1)
    server = start()
    assert server.revision == 1
    with Client(server) as client:
        assert client.get("a key").body == {"key": "a key", "value": "its value"}
        assert client.set("another", "value").revision == 2


def test_no_acknowledged_write_is_lost_when_the_server_is_killed_under_load(
    start: Start, data_dir: Path, rounds: int
) -> None:
    random = Random("killed under load")
    loads: list[Load] = []
    revision = 0
    for number in range(rounds):
        server = start()
        assert server.revision == revision
        with Load(server, f"round{number}", writers=16) as load:
            load.wait_for(random.randrange(300))
            server.kill()
        loads.append(load)
        after = contents(data_dir)
        check(loads, after)
        revision = after.revision


def leave_transactions_open(server: Server) -> None:
    """Write in the shared transaction, and in an isolated one that waits for its commit."""
    with Client(server) as client:
        within = client.open()
        assert client.set("uncommitted in isolation", 1, within).status == 200
        assert client.ask("POST", "/begin").status == 200
        assert client.set("uncommitted", 1).status == 200
        assert client.ask("POST", "/begin").status == 200
        assert client.set("uncommitted and nested", 1).status == 200
        assert client.ask("POST", "/commit").status == 200


@pytest.mark.parametrize("transactional", [False, True], ids=["keys", "transactions"])
def test_killed_while_it_folds_nothing_acknowledged_is_lost_and_nothing_uncommitted_there(
    start: Start, data_dir: Path, rounds: int, transactional: bool
) -> None:
    random = Random("killed while it folds")
    loads: list[Load] = []
    revision = folded = 0
    for number in range(rounds // 2):
        server = start(*FOLDING)
        assert server.revision == revision
        if transactional:
            leave_transactions_open(server)
        with Load(server, f"round{number}", transactional=transactional) as load:
            load.wait_for(random.randrange(100, 300))
            server.kill()
        loads.append(load)
        after = contents(data_dir)
        check(loads, after)
        assert after.folded > folded, "no fold happened, so nothing was tested"
        revision, folded = after.revision, after.folded


@pytest.mark.parametrize("point", WRITE)
def test_killed_between_two_steps_of_a_write_no_acknowledged_write_is_lost(
    start: Start, data_dir: Path, point: str
) -> None:
    server = start(*FOLDING, program=failpoint("kill", point, nth=5))
    with Load(server) as load:
        load.wait_for_close()
    assert server.wait() == -signal.SIGKILL
    check([load], contents(data_dir))


def test_nobody_is_answered_and_nothing_seen_before_the_flush_has_ended(
    start: Start, data_dir: Path
) -> None:
    server = start(program=failpoint("hold", "journal written"))
    with Client(server) as writer, Client(server) as deleter, Client(server) as reader:
        writer.send("POST", "/set", {"key": "key", "value": "value"})
        server.wait_for_log(held("journal written"))
        # Before the deletion, which would hide a value that is seen too early.
        assert reader.get("key").status == 404
        deleter.send("DELETE", "/delete/key")
        until(lambda: reader.ask("GET", "/v1/status").body["storage"]["staged"] == 2, "the deletion")
        assert reader.get("key").status == 404
        unanswered = select.select([writer.connection.sock, deleter.connection.sock], [], [], 0)
        assert unanswered == ([], [], [])
        server.kill()
        for client in (writer, deleter):
            with pytest.raises(CLOSED):
                client.receive()
    assert contents(data_dir).records == {}


def test_while_a_fold_is_held_up_writes_are_acknowledged_and_outlive_a_kill(
    start: Start, data_dir: Path
) -> None:
    server = start(*FOLDING, program=failpoint("hold", "tree written"))
    with Load(server) as load:
        server.wait_for_log(held("tree written"))
        load.wait_for(load.acknowledged + 200)
        server.kill()
    after = contents(data_dir)
    check([load], after)
    assert after.folded == 0
