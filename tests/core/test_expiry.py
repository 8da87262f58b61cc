"""Expiry: when a key ends, for which reader, and how it is removed."""

from typing import Any

import pytest

from kvactor.core.messages import (
    SHARED,
    Begin,
    Check,
    Commit,
    Message,
    Open,
    Status,
    Stop,
    Tick,
)
from kvactor.core.operations import Delete, Get, Increment, Range
from kvactor.core.owner import SWEEP_LIMIT
from kvactor.core.records import decode_revision
from kvactor.core.space import FreeSpace
from kvactor.errors import KeyNotFound, TransactionConflict
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal
from tests.core.builders import (
    ABSENT,
    TICK,
    batch,
    catch_up,
    delete,
    delete_range,
    get,
    keys,
    put,
    record_of,
    scan,
    value,
    values_of,
)
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness, RecordingReply


def test_a_key_expires_at_its_time_for_every_reader_and_is_removed_by_the_next_tick() -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal)
    harness.ask(put(b"a", ttl=1000))
    harness.ask(put(b"b", ttl=1001))
    harness.ask(put(b"c"))
    harness.now += 1000
    assert value(harness, b"a") is None
    assert isinstance(harness.ask(delete(b"a")).error, KeyNotFound)
    assert keys(harness) == [b"b", b"c"]
    assert harness.ask(Status()).result.keys == 3
    harness.tell(TICK)
    assert harness.ask(Status()).result.keys == 2
    assert decode_revision(4, journal.rows[4]).changes == ((b"a", None),)
    harness.tell(TICK)
    assert harness.owner.revision == 4


def test_a_key_overwritten_before_its_expiry_stays() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.ask(put(b"a", b"2"))
    harness.now += 10
    harness.tell(TICK)
    assert value(harness, b"a") == b"2"
    assert harness.owner.revision == 2


def test_a_key_written_after_its_expiry_is_a_new_one() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    harness.ask(put(b"a"))
    assert record_of(harness, b"a").created == 2
    assert harness.ask(Status()).result.keys == 1


def test_many_keys_that_expire_at_once_are_swept_from_every_layer_in_several_revisions() -> None:
    tree = HeldTree()
    tree.holding = False
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=80_000))
    for n in range(2 * SWEEP_LIMIT + SWEEP_LIMIT // 2):
        harness.send(put(b"%06d" % n, ttl=10))
        if n == SWEEP_LIMIT:
            # From here on a part is frozen, and a part is in the memtable.
            harness.settle()
            tree.holding = True
    harness.settle()
    assert tree.pending
    harness.now += 10
    before = harness.owner.revision
    harness.tell(TICK)
    assert harness.ask(Status()).result.keys == 0
    assert harness.owner.revision == before + 3


def test_a_sweep_waits_while_the_disk_is_full_and_then_finds_every_expired_key() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    harness.tell(Tick(FreeSpace(0)))
    assert harness.owner.revision == 1
    harness.tell(TICK)
    assert harness.owner.revision == 2


def test_a_transaction_that_saw_a_record_conflicts_once_that_has_expired() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.ask(put(b"b", ttl=20))
    for transaction in ("get", "scan", "blind", "later"):
        harness.ask(Open(transaction))
    harness.ask(get(b"a", "get"))
    harness.ask(scan(transaction="scan"))
    harness.ask(put(b"a", b"x", "blind"))
    harness.ask(get(b"b", "later"))
    harness.now += 10
    assert isinstance(harness.ask(get(b"zzz", "get")).error, TransactionConflict)
    assert isinstance(harness.ask(Commit("scan")).error, TransactionConflict)
    assert harness.ask(Commit("blind")).error is None
    assert harness.ask(Commit("later")).error is None


def test_time_stands_still_when_the_clock_is_set_back() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    assert value(harness, b"a") is None
    harness.now -= 5
    assert value(harness, b"a") is None


# -- expiry among writes that are not durable yet --


def expiring(**ttls: int) -> tuple[OwnerHarness, HeldJournal]:
    """An owner with durable keys that expire, whose disk waits from now on."""
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    for key, ttl in ttls.items():
        harness.ask(put(key.encode(), ttl=ttl))
    journal.holding = True
    return harness, journal


def test_a_key_that_expires_while_a_batch_that_read_it_is_staged_stays_until_the_flush() -> None:
    harness, journal = expiring(k=10)
    decided = harness.now
    copied = harness.ask(batch(Get(b"k"), put(b"b")))
    harness.now += 10
    # The batch has seen k, and its b cannot be seen yet: a reader without k would fit no order.
    for _ in range(2):
        read, page = harness.ask(get(b"k")), harness.ask(scan())
        assert read.result is not None
        assert [key for key, _ in page.result.items] == [b"k"]
        assert (read.time, page.time) == (decided, decided)
        harness.now += 1000
    assert not copied.answered
    catch_up(harness, journal)
    assert values_of(copied.result.results) == [b"1", False]
    assert copied.time == decided
    read, page = harness.ask(get(b"k")), harness.ask(scan())
    assert read.result is None
    assert [key for key, _ in page.result.items] == [b"b"]
    assert (read.time, page.time) == (harness.now, harness.now)


def test_readers_see_expiry_as_of_the_oldest_revision_that_is_not_durable() -> None:
    harness, journal = expiring(early=3, late=7, later=9)
    flushing = harness.ask(put(b"a"))
    harness.now += 5
    harness.ask(put(b"b"))
    staged = harness.ask(put(b"c"))
    harness.now += 3
    assert keys(harness) == [b"early", b"late", b"later"]
    journal.release()
    harness.settle()
    assert flushing.answered
    assert keys(harness) == [b"a", b"late", b"later"]
    journal.release()
    harness.settle()
    assert staged.answered
    assert keys(harness) == [b"a", b"b", b"c", b"later"]
    assert not journal.pending


def test_a_reader_sees_no_key_that_expired_before_anything_was_staged() -> None:
    harness, journal = expiring(k=10)
    harness.now += 10
    staged = harness.ask(put(b"b"))
    assert value(harness, b"k") is None
    assert keys(harness) == []
    catch_up(harness, journal)
    assert staged.answered


#: Requests whose answer says that k is missing, and that change nothing.
MISSING_K: dict[str, Message[Any]] = {
    "get in a transaction": get(b"k", "t"),
    "get in the shared transaction": get(b"k", SHARED),
    "scan in a transaction": scan(b"k", b"l", transaction="t"),
    "reverse scan in a transaction": scan(b"k", b"l", reverse=True, transaction="t"),
    "get in a batch": batch(Get(b"k")),
    "scan in a batch": batch(Range(b"k", b"l")),
    "check": batch(checks=[Check(b"k", ABSENT)]),
    "failed check": batch(checks=[Check(b"k", (1,))]),
    "delete": delete(b"k"),
    "delete in a transaction": delete(b"k", "t"),
    "delete in a batch": batch(Delete(b"k")),
    "delete range": delete_range(b"k", b"l"),
    "increment in a transaction": batch(Increment(b"k", 1), transaction="t"),
}


@pytest.mark.parametrize("how", MISSING_K)
def test_an_answer_that_a_key_has_expired_waits_for_everything_staged_before_it(how: str) -> None:
    harness, journal = expiring(k=10)
    harness.ask(Open("t"))
    harness.ask(Begin(SHARED))
    harness.ask(put(b"a"))
    harness.now += 5
    # Until this is durable, too, readers see k as of the time at which it was staged.
    last = harness.ask(put(b"b"))
    harness.now += 5
    reply: RecordingReply[Any] = harness.ask(MISSING_K[how])
    journal.release()
    harness.settle()
    assert value(harness, b"k") == b"1"
    assert not reply.answered
    journal.release()
    harness.settle()
    assert value(harness, b"k") is None
    assert reply.answered
    assert (reply.revision, reply.time) == (last.revision, harness.now)


@pytest.mark.parametrize("how", MISSING_K)
def test_an_answer_that_a_key_has_expired_is_given_at_once_if_readers_know_it(how: str) -> None:
    harness, _ = expiring(k=10)
    harness.ask(Open("t"))
    harness.ask(Begin(SHARED))
    harness.now += 10
    # The key expires in the millisecond in which this is staged.
    staged = harness.ask(put(b"b"))
    assert harness.ask(MISSING_K[how]).answered
    assert not staged.answered


def test_a_commit_waits_for_the_flush_that_its_reads_of_an_expired_key_depend_on() -> None:
    harness, journal = expiring(k=10)
    harness.ask(Open("t"))
    harness.ask(put(b"a"))
    harness.now += 10
    read = harness.ask(get(b"k", "t"))
    committed = harness.ask(Commit("t"))
    assert (read.answered, committed.answered) == (False, False)
    catch_up(harness, journal)
    assert read.result is None
    assert committed.revision == 2


def test_an_answer_carries_the_time_at_which_it_was_judged() -> None:
    harness, journal = expiring(k=10)
    start = harness.now
    assert harness.ask(get(b"k")).time == start
    harness.now += 1
    missing = harness.ask(delete(b"none"))
    written = harness.ask(put(b"a"))
    harness.now += 1
    refused = harness.ask(batch(put(b"b"), checks=[Check(b"a", ABSENT)]))
    assert harness.ask(get(b"k")).time == start + 1
    assert harness.ask(Status()).time == start + 2
    harness.now += 1
    catch_up(harness, journal)
    assert [reply.time for reply in (missing, written, refused)] == [start + 1, start + 1, start + 2]
    assert refused.error is not None
    # When the clock was set back, time stands still.
    harness.now = start
    assert harness.ask(get(b"k")).time == start + 3


# -- sweeps --


def test_a_stop_does_not_wait_for_the_sweep_of_every_expired_key() -> None:
    harness = OwnerHarness()
    for number in range(3 * SWEEP_LIMIT):
        harness.send(put(b"k%d" % number, ttl=10))
    harness.settle()
    harness.now += 10
    harness.send(TICK)
    harness.tell(Stop())
    assert harness.owner.finished
    assert harness.owner.revision == 3 * SWEEP_LIMIT + 1


def test_a_sweep_goes_on_once_what_it_has_removed_is_durable() -> None:
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    for number in range(3 * SWEEP_LIMIT):
        harness.send(put(b"k%d" % number, ttl=10))
    harness.settle()
    harness.now += 10
    journal.holding = True
    harness.tell(TICK)
    for swept in (1, 2, 3):
        assert harness.ask(Status()).result.staged == 1
        journal.release()
        harness.settle()
        assert harness.owner.revision == 3 * SWEEP_LIMIT + swept


def test_a_tick_during_a_sweep_begins_no_second_one() -> None:
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    for number in range(3 * SWEEP_LIMIT):
        harness.send(put(b"k%d" % number, ttl=10))
    harness.settle()
    harness.now += 10
    journal.holding = True
    for _ in range(3):
        harness.tell(TICK)
    assert harness.ask(Status()).result.staged == 1
    journal.holding = False
    journal.release()
    harness.settle()
    assert harness.ask(Status()).result.keys == 0
