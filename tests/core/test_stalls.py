"""Writes stall while folds do not keep up with them; nothing else does."""

from typing import Any

import pytest

from kvactor.core import admission
from kvactor.core.admission import MAX_MEMTABLES
from kvactor.core.messages import SHARED, Begin, Check, Commit, Inspect, Message, Open, Rollback, Status
from kvactor.core.operations import Delete, Get, Increment, Range, Set
from kvactor.errors import WritesStalled
from kvactor.settings import Settings
from tests.core.builders import (
    IDEMPOTENCY_KEY,
    PRESENT,
    TICK,
    batch,
    catch_up,
    data,
    delete,
    delete_range,
    keys,
    put,
    scan,
    value,
)
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness

MEMTABLE = 10_000
BOUND = MAX_MEMTABLES * MEMTABLE
VALUE = b"v" * 1000
#: More than a value and its key take in memory.
ONE_WRITE = 1500


def stalled() -> tuple[OwnerHarness, HeldJournal, HeldTree]:
    """An owner whose fold is held up, and whose writes stall for it."""
    journal, tree = HeldJournal(holding=False), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=MEMTABLE))
    harness.ask(Open("t"))
    harness.ask(put(b"in t", b"1", "t"))
    harness.ask(put(b"expires", ttl=10))
    harness.ask(put(b"once", idempotency_key=IDEMPOTENCY_KEY))
    written = 0
    while harness.ask(put(b"%05d" % written, VALUE)).error is None:
        written += 1
        assert harness.owner._store.unfolded < BOUND + ONE_WRITE
    assert harness.owner._store.unfolded >= BOUND
    return harness, journal, tree


WRITES: dict[str, Message[Any]] = {
    "set": put(b"a"),
    "set of an old key": put(b"00000"),
    "set in a transaction": put(b"a", b"1", "t"),
    "set in the shared transaction": put(b"a", b"1", SHARED),
    "conditional set": put(b"00000", precondition=PRESENT),
    "delete": delete(b"00000"),
    "delete in a transaction": delete(b"00000", "t"),
    "delete range": delete_range(b"", None),
    "increment": batch(Increment(b"n", 1)),
    "batch": batch(Get(b"00000"), Set(b"a", b"", "")),
    "commit": Commit("t"),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_write_while_a_fold_is_behind_is_refused_and_does_nothing(how: str) -> None:
    harness, journal, _ = stalled()
    harness.ask(Begin(SHARED))
    before = data(harness), data(harness, "t"), data(harness, SHARED), journal.head()
    reply = harness.ask(WRITES[how])
    assert isinstance(reply.error, WritesStalled)
    assert (data(harness), data(harness, "t"), data(harness, SHARED), journal.head()) == before


def test_reads_and_requests_that_write_nothing_go_on_while_writes_stall() -> None:
    harness, _, _ = stalled()
    assert value(harness, b"00000") == VALUE
    assert len(harness.ask(scan(limit=5)).result.items) == 5
    one = batch(Get(b"00000"), Range(limit=1), Delete(b"none"), checks=[Check(b"00000", PRESENT)])
    assert harness.ask(one).error is None
    # A kept response is repeated.
    assert harness.ask(put(b"once", idempotency_key=IDEMPOTENCY_KEY)).result.results == [True]
    assert value(harness, b"00000", "t") == VALUE
    assert harness.ask(Begin("t")).result.depth == 2
    assert harness.ask(Rollback("t")).result.depth == 1
    assert harness.ask(Begin(SHARED)).error is None
    assert harness.ask(Commit(SHARED)).error is None
    report = harness.ask(Status()).result
    assert report.stalled
    assert report.memtable_bytes < BOUND + ONE_WRITE


def test_writes_are_accepted_again_after_the_fold() -> None:
    harness, journal, tree = stalled()
    assert isinstance(harness.ask(Commit("t")).error, WritesStalled)
    tree.release()
    harness.settle()
    # The next fold is under way, and a memtable is empty again.
    assert tree.pending
    assert not harness.ask(Status()).result.stalled
    assert harness.ask(put(b"a")).error is None
    assert harness.ask(Inspect("t")).result.depth == 1
    assert harness.ask(Commit("t")).error is None
    tree.holding = False
    tree.release()
    harness.settle()
    # A restart finds every write that was accepted, and no other.
    kept = data(harness)
    assert {b"a", b"in t", b"once", b"00000"} < set(kept)
    assert data(OwnerHarness(journal, tree)) == kept


def test_staged_writes_count_although_the_disk_is_slow() -> None:
    journal, tree = HeldJournal(holding=False), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=MEMTABLE))
    harness.ask(put(b"first", VALUE * 10))
    assert tree.pending
    journal.holding = True
    replies = [harness.ask(put(b"%05d" % number, VALUE)) for number in range(100)]
    refused = [reply for reply in replies if reply.answered]
    assert {type(reply.error) for reply in refused} == {WritesStalled}
    assert BOUND <= harness.owner._store.unfolded < BOUND + ONE_WRITE
    catch_up(harness, journal)
    assert [reply.error for reply in replies if reply not in refused] == [None] * (100 - len(refused))
    assert isinstance(harness.ask(put(b"a")).error, WritesStalled)


def test_a_memtable_that_is_full_does_not_stall_writes_before_a_fold_is_under_way() -> None:
    journal = HeldJournal()
    harness = OwnerHarness(journal, settings=Settings(memtable_size=MEMTABLE))
    replies = [harness.ask(put(b"%05d" % number, VALUE)) for number in range(100)]
    assert harness.owner._store.unfolded > BOUND
    assert not harness.ask(Status()).result.stalled
    catch_up(harness, journal)
    assert [reply.error for reply in replies] == [None] * 100


def test_writes_stall_while_much_waits_for_a_flush_and_go_on_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MAX_UNFLUSHED", BOUND)
    journal = HeldJournal()
    harness = OwnerHarness(journal)
    replies = [harness.ask(put(b"%05d" % number, VALUE)) for number in range(100)]
    refused = [reply for reply in replies if reply.answered]
    assert {type(reply.error) for reply in refused} == {WritesStalled}
    assert BOUND <= harness.owner._store.unfolded < BOUND + ONE_WRITE
    assert harness.ask(Status()).result.stalled
    catch_up(harness, journal)
    assert [reply.error for reply in replies if reply not in refused] == [None] * (100 - len(refused))
    assert not harness.ask(Status()).result.stalled
    assert harness.send(put(b"a")).error is None


def test_sweeps_pause_while_writes_stall_and_forget_no_key() -> None:
    harness, journal, tree = stalled()
    harness.now += 10
    head = journal.head()
    for _ in range(2):
        harness.tell(TICK)
    assert journal.head() == head
    assert b"expires" not in keys(harness, limit=1000)
    tree.release()
    harness.settle()
    harness.tell(TICK)
    (swept,) = journal.replay(head)
    assert swept.changes == ((b"expires", None),)
