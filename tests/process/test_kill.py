"""kill -9: what was acknowledged is there after the restart, and nothing uncommitted (P3)."""

import contextlib
import select
import signal
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from random import Random

import pytest

from kvactor.failpoints import POINTS, STEPS, reached
from tests.process.clients import CLOSED, Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.failpoints import HOLD, armed
from tests.process.servers import Server, until
from tests.process.writers import Load, check
from tests.sizes import size

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
    """Write in the shared transaction, and in an isolated one that waits for its commit; roll a
    nested one back in either.
    """
    with Client(server) as client:
        transaction = client.open()
        assert client.set("uncommitted in isolation", 1, transaction).status == 200
        nested = f"/v1/transactions/{transaction}"
        assert client.ask("POST", f"{nested}/begin").status == 200
        assert client.set("rolled back in isolation", 1, transaction).status == 200
        assert client.ask("POST", f"{nested}/rollback").status == 200
        assert client.ask("POST", "/begin").status == 200
        assert client.set("uncommitted", 1).status == 200
        for end in ("commit", "rollback"):
            assert client.ask("POST", "/begin").status == 200
            assert client.set(f"nested, then {end}", 1).status == 200
            assert client.ask("POST", f"/{end}").status == 200


@pytest.mark.parametrize("transactional", [False, True], ids=["keys", "transactions"])
def test_a_kill_during_a_fold_loses_nothing_acknowledged_and_keeps_nothing_uncommitted(
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


#: The latest arrival at a step at which a round ends; a fold is rarer than the others.
LATEST = 60
LATEST_FOLD = 6


def rounds_at(step: str, random: Random, rounds: int) -> Iterator[tuple[str, int]]:
    """Yield the points of a step, over and over, each with the arrival at which something happens: its
    share of so many rounds over all points.
    """
    points = [point for point in POINTS if point.partition(".")[0] == step]
    for _ in range(ceil(rounds / len(POINTS))):
        for point in points:
            yield point, random.randint(1, LATEST_FOLD if step == "fold" else LATEST)


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_before_within_or_after_a_step_of_a_write_loses_nothing_acknowledged(
    start: Start, data_dir: Path, step: str, figure: Callable[[str], None]
) -> None:
    random = Random(f"killed at {step}")
    loads: list[Load] = []
    revision = 0
    for number, (point, nth) in enumerate(rounds_at(step, random, size("kills"))):
        server = start(*FOLDING, environ=armed(f"{point}=kill@{nth}"))
        assert server.revision == revision
        transactional = random.random() < 0.5
        if transactional:
            # It may be killed already: a first fold needs no more than what was replayed.
            with contextlib.suppress(*CLOSED):
                leave_transactions_open(server)
        with Load(server, f"round{number}", transactional=transactional) as load:
            load.wait_for_close()
        assert server.wait() == -signal.SIGKILL
        assert reached(point) in server.log
        loads.append(load)
        after = contents(data_dir)
        check(loads, after)
        revision = after.revision
    acknowledged = sum(load.acknowledged for load in loads)
    figure(f"killed at {step}: {len(loads)} rounds, {acknowledged} acknowledged writes, 0 lost")


def test_a_write_is_neither_answered_nor_visible_before_its_flush_has_ended(
    start: Start, data_dir: Path
) -> None:
    server = start(environ=armed(f"flush.written={HOLD}"))
    with Client(server) as writer, Client(server) as deleter, Client(server) as reader:
        writer.send("POST", "/set", {"key": "key", "value": "value"})
        server.wait_for_log(reached("flush.written"))
        # Before the deletion, which would hide a value that is seen too early.
        assert reader.get("key").status == 404
        deleter.send("DELETE", "/delete/key")
        until(lambda: reader.ask("GET", "/v1/status").body["storage"]["staged"] == 2, "the deletion")
        assert reader.get("key").status == 404
        unanswered = select.select([writer.connection.socket, deleter.connection.socket], [], [], 0)
        assert unanswered == ([], [], [])
        server.kill()
        for client in (writer, deleter):
            with pytest.raises(CLOSED):
                client.receive()
    assert contents(data_dir).records == {}


def test_writes_during_a_fold_that_is_held_up_are_acknowledged_and_outlive_a_kill(
    start: Start, data_dir: Path
) -> None:
    server = start(*FOLDING, environ=armed(f"fold.written={HOLD}"))
    with Load(server) as load:
        server.wait_for_log(reached("fold.written"))
        load.wait_for(load.acknowledged + 200)
        server.kill()
    after = contents(data_dir)
    check([load], after)
    assert after.folded == 0
