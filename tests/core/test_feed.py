"""The feed: every revision once, in order, once it is durable, from wherever a reader is."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kvactor.actor import StoreActor
from kvactor.core import feed
from kvactor.core.messages import Begin, Changes, Commit, Open, Stop
from kvactor.core.operations import Delete
from kvactor.core.protocols import StorageFailed
from kvactor.core.records import HIDDEN, Revision, value_of
from kvactor.errors import HistoryGone, OutcomeUnknown, RevisionInFuture
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.core.builders import (
    IDEMPOTENCY_KEY,
    TICK,
    batch,
    catch_up,
    delete,
    delete_range,
    held_with,
    put,
)
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness, RecordingReply


class CountingJournal(HeldJournal):
    """A journal that knows how often it was read."""

    def __init__(self) -> None:
        super().__init__(holding=False)
        self.replays = 0

    def replay(self, after: int) -> Iterator[Revision]:
        self.replays += 1
        return super().replay(after)


def follow(harness: OwnerHarness, since: int, limit: int = 1 << 20) -> list[Revision]:
    """All revisions after `since`, slice by slice."""
    found: list[Revision] = []
    while got := harness.ask(Changes(since, limit)).result:
        found += got
        since = got[-1].number
    return found


def numbers(revisions: list[Revision]) -> list[int]:
    return [revision.number for revision in revisions]


def values_of(revision: Revision) -> dict[bytes, bytes | None]:
    return {key: None if record is None else value_of(record) for key, record in revision.changes}


# -- what there is --


def test_every_revision_comes_once_in_order_and_whole() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a"))
    harness.ask(batch(put(b"b"), put(b"a", b"2"), Delete(b"none")))
    harness.now += 5
    harness.ask(Open("t"))
    harness.ask(Begin("t"))
    harness.ask(put(b"c", b"t", "t"))
    harness.ask(Commit("t"))
    harness.ask(delete(b"b", "t"))
    assert len(follow(harness, 0)) == 2
    harness.ask(Commit("t"))
    harness.ask(delete_range(b"", None))
    found = follow(harness, 0)
    assert numbers(found) == [1, 2, 3, 4]
    assert [values_of(one) for one in found] == [
        {b"a": b"1"},
        {b"b": b"1", b"a": b"2"},
        {b"b": None, b"c": b"t"},
        {b"a": None, b"c": None},
    ]
    assert [one.time for one in found] == [harness.now - 5, harness.now - 5, harness.now, harness.now]
    assert follow(harness, 2) == found[2:]
    assert follow(harness, 4) == []
    assert harness.ask(Changes(0, 1)).result == found[:1]
    assert follow(harness, 0, limit=1) == found


def test_what_changes_nothing_is_not_in_the_feed() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a"))
    harness.ask(batch(put(b"b"), Delete(b"b")))
    harness.ask(delete_range(b"x", None))
    harness.ask(put(b"b"))
    assert [values_of(one) for one in follow(harness, 0)] == [{b"a": b"1"}, {b"b": b"1"}]


def test_an_expiry_is_a_deletion() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    waiting = harness.ask(Changes(1, 9, wait=True))
    assert follow(harness, 1) == []
    harness.tell(TICK)
    assert [values_of(one) for one in waiting.result] == [{b"a": None}]


def test_what_is_kept_for_an_idempotency_key_is_part_of_its_revision_under_a_hidden_key() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", idempotency_key=IDEMPOTENCY_KEY))
    (revision,) = follow(harness, 0)
    assert [key for key, _ in revision.changes] == [b"a", HIDDEN + IDEMPOTENCY_KEY.key]


@pytest.mark.parametrize("restart", [True, False])
def test_history_beyond_what_is_in_memory_comes_from_the_journal(
    restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TAIL", 5)
    monkeypatch.setattr(feed, "SLICE", 3)
    journal, tree = CountingJournal(), MemoryTree()
    harness = OwnerHarness(journal, tree)
    for n in range(1, 13):
        harness.ask(put(b"a", b"%d" % n))
    if restart:
        harness = OwnerHarness(journal, tree)
    journal.replays = 0
    for since in range(13):
        found = follow(harness, since)
        assert numbers(found) == list(range(since + 1, 13))
        assert [values_of(one)[b"a"] for one in found] == [b"%d" % n for n in range(since + 1, 13)]
    assert journal.replays > 0
    journal.replays = 0
    follow(harness, 7)
    # What is in memory is not read again.
    assert (journal.replays == 0) is not restart
    harness.ask(put(b"a", b"13"))
    assert numbers(follow(harness, 0)) == list(range(1, 14))
    assert numbers(follow(harness, 12)) == [13]


def test_in_memory_are_as_many_of_the_newest_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "TAIL_SIZE", 1000)
    journal = CountingJournal()
    harness = OwnerHarness(journal)
    reads = []
    for size in (300, 300, 300, 2000, 10):
        harness.ask(put(b"a", b"v" * size))
        journal.replays = 0
        assert numbers(follow(harness, 0)) == list(range(1, harness.owner.revision + 1))
        reads.append(journal.replays)
    # The large one does not fit, nor does what is older than it.
    assert reads[:3] == [0, 0, 1]
    assert reads[3] > 0
    journal.replays = 0
    assert numbers(follow(harness, 4)) == [5]
    assert journal.replays == 0


def test_an_answer_is_a_slice_of_so_many_revisions_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = OwnerHarness()
    for _ in range(feed.SLICE + 1):
        harness.ask(put(b"a"))
    assert numbers(harness.ask(Changes(0, 1000)).result) == list(range(1, feed.SLICE + 1))
    assert numbers(harness.ask(Changes(1, 1000)).result) == list(range(2, feed.SLICE + 2))
    monkeypatch.setattr(feed, "SLICE_SIZE", 1000)
    head = harness.owner.revision
    for n in range(4):
        harness.ask(put(b"%d" % n + b"k" * 400, b"v" * 100))
    # The one that goes beyond is the last; there is always one.
    assert len(harness.ask(Changes(head, 1000)).result) == 2
    head = harness.owner.revision
    harness.ask(delete_range(b"0", b"4"))
    harness.ask(put(b"a"))
    assert numbers(harness.ask(Changes(head, 1000)).result) == [head + 1]


# -- what there is not --


def test_history_that_is_trimmed_is_gone_and_the_answer_names_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    journal, tree = HeldJournal(holding=False), MemoryTree()
    settings = Settings(memtable_size=1, history=4)
    harness = OwnerHarness(journal, tree, settings)
    for _ in range(10):
        harness.ask(put(b"a"))
    oldest = min(journal.rows)
    assert 1 < oldest < 9
    for one in (harness, OwnerHarness(journal, tree, settings)):
        for since in (0, oldest - 2):
            error = one.ask(Changes(since, 9)).error
            assert isinstance(error, HistoryGone)
            assert error.details == {"oldest": oldest}
        assert numbers(follow(one, oldest - 1)) == list(range(oldest, 11))
    assert isinstance(harness.ask(Changes(0, 9, wait=True)).error, HistoryGone)


def test_the_oldest_that_is_kept_may_be_in_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "TAIL", 5)
    journal = MemoryJournal()
    harness = OwnerHarness(journal, settings=Settings(memtable_size=1, history=1))
    for _ in range(10):
        harness.ask(put(b"a"))
    assert min(journal.rows) > 6
    error = harness.ask(Changes(0, 9)).error
    assert isinstance(error, HistoryGone)
    assert error.details == {"oldest": 6}
    assert numbers(follow(harness, 5)) == [6, 7, 8, 9, 10]


def test_when_nothing_at_all_is_kept_the_next_revision_is_the_oldest() -> None:
    journal, tree = MemoryJournal(), MemoryTree()
    settings = Settings(memtable_size=1)
    harness = OwnerHarness(journal, tree, settings)
    for _ in range(3):
        harness.ask(put(b"a"))
    journal.rows.clear()
    again = OwnerHarness(journal, tree, settings)
    error = again.ask(Changes(0, 9)).error
    assert isinstance(error, HistoryGone)
    assert error.details == {"oldest": 4}
    assert follow(again, 3) == []


@pytest.mark.parametrize("wait", [True, False])
def test_a_reader_from_the_future_is_told_so(wait: bool) -> None:
    harness, journal = held_with(b"a")
    staged = harness.ask(put(b"b"))
    # It is staged, and so for a reader it is not there yet.
    reply = harness.ask(Changes(2, 9, wait))
    assert isinstance(reply.error, RevisionInFuture)
    assert reply.revision == 1
    catch_up(harness, journal)
    assert staged.answered
    assert harness.ask(Changes(2, 9)).result == []


# -- waiting --


def test_who_waits_is_answered_by_the_next_flush_with_all_of_it() -> None:
    harness, journal = held_with(b"a")
    early, late = harness.ask(Changes(1, 9, wait=True)), harness.ask(Changes(0, 9, wait=True))
    assert numbers(late.result) == [1]
    harness.ask(put(b"b"))
    harness.ask(put(b"c"))
    harness.ask(put(b"d"))
    assert harness.ask(Changes(1, 9)).result == []
    assert not early.answered
    journal.release()
    harness.settle()
    assert (early.revision, numbers(early.result)) == (2, [2])
    again = harness.ask(Changes(2, 1, wait=True))
    assert not again.answered
    catch_up(harness, journal)
    assert (again.revision, numbers(again.result)) == (4, [3])
    assert numbers(follow(harness, 2)) == [3, 4]


def test_what_is_in_the_journal_but_not_told_to_the_owner_is_not_in_the_feed_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    harness, journal = held_with(b"a", b"b", b"c")
    waiting = harness.ask(Changes(3, 9, wait=True))
    written = harness.ask(put(b"d"))
    journal.release()
    # On disk, but the news of it has not been read.
    assert max(journal.rows) == 4
    reply: RecordingReply[Any] = harness.send(Changes(0, 9))
    assert (reply.revision, numbers(reply.result)) == (3, [1, 2, 3])
    assert harness.send(Changes(3, 9)).result == []
    assert isinstance(harness.send(Changes(4, 9)).error, RevisionInFuture)
    assert not waiting.answered
    assert not written.answered
    harness.settle()
    assert written.revision == 4
    assert numbers(waiting.result) == [4]


def test_the_writer_is_answered_before_the_readers() -> None:
    harness, journal = held_with()
    heard: list[str] = []
    reader: RecordingReply[Any] = RecordingReply(lambda: heard.append("reader"))
    writer: RecordingReply[Any] = RecordingReply(lambda: heard.append("writer"))
    harness.owner.drain(harness.now, [(Changes(0, 9, wait=True), reader), (put(b"a"), writer)])
    catch_up(harness, journal)
    assert heard == ["writer", "reader"]


def test_a_stop_answers_who_waits_with_nothing_and_makes_nobody_wait_after_it() -> None:
    journal, tree = HeldJournal(holding=False), HeldTree()
    harness = OwnerHarness(journal, tree)
    harness.ask(put(b"a"))
    waiting = [harness.ask(Changes(1, 9, wait=True)) for _ in range(2)]
    harness.tell(Stop())
    assert [reply.result for reply in waiting] == [[], []]
    assert harness.ask(Changes(1, 9, wait=True)).result == []
    assert numbers(follow(harness, 0)) == [1]


def test_a_reader_that_is_gone_is_forgotten_by_the_tick_and_harms_nobody() -> None:
    harness = OwnerHarness()
    gone, here = harness.ask(Changes(0, 9, wait=True)), harness.ask(Changes(0, 9, wait=True))
    feed = harness.owner._feed
    gone.cancelled = True
    assert len(feed) == 2
    harness.tell(TICK)
    assert len(feed) == 1
    here.cancelled = True
    stays = harness.ask(Changes(0, 9, wait=True))
    harness.ask(put(b"a"))
    assert [reply.answered for reply in (gone, here, stays)] == [False, False, True]
    assert len(feed) == 0


async def test_who_waits_in_the_feed_is_told_when_the_server_fails() -> None:
    journal = HeldJournal()
    actor = StoreActor(Storage(journal, MemoryTree()), Settings())
    await actor.start()
    reader = actor.ask(Changes(0, 9, wait=True))
    written = actor.ask(put(b"a"))
    while not journal.pending:
        assert not actor.done.done()
        await asyncio.sleep(0)
    journal.break_down(OSError(5, "Input/output error"))
    await asyncio.wait({actor.done})
    assert [type(waiting.exception()) for waiting in (reader, written)] == [OutcomeUnknown] * 2
    assert isinstance(actor.done.exception(), StorageFailed)


async def test_who_waits_in_the_feed_is_told_when_the_server_fails_while_it_answers_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = StoreActor(Storage(MemoryJournal(), MemoryTree()), Settings())
    await actor.start()
    waiting = [actor.ask(Changes(0, 9, wait=True)) for _ in range(3)]
    read = feed.Feed.read
    reads = iter([True, True, True, True, False])

    def broken(feed_: feed.Feed, *arguments: int) -> list[Revision]:
        if not next(reads):
            raise ZeroDivisionError("a fault of ours")
        return read(feed_, *arguments)

    monkeypatch.setattr(feed.Feed, "read", broken)
    actor.ask(put(b"a"))
    await asyncio.wait({actor.done})
    outcomes = [future.exception() for future in waiting]
    assert outcomes[0] is None
    assert [type(outcome) for outcome in outcomes[1:]] == [OutcomeUnknown, OutcomeUnknown]
