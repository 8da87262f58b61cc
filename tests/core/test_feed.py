"""The feed: every revision once, in order, once it is durable, from wherever a reader is."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kvactor.actor import StoreActor
from kvactor.core import feed
from kvactor.core.messages import Begin, Changes, Commit, Delete, DeleteRange, Open, Stop
from kvactor.core.protocols import StorageFailed
from kvactor.core.records import HIDDEN, Revision, value_of
from kvactor.errors import HistoryGone, OutcomeUnknown, RevisionInFuture
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.core.builders import ONCE, TICK, batch, catch_up, held_with, put
from tests.core.harness import Desk, HeldJournal, HeldTree, Said


class CountingJournal(HeldJournal):
    """A journal that knows how often it was read."""

    def __init__(self) -> None:
        super().__init__(holding=False)
        self.replays = 0

    def replay(self, after: int) -> Iterator[Revision]:
        self.replays += 1
        return super().replay(after)


def follow(desk: Desk, since: int, limit: int = 1 << 20) -> list[Revision]:
    """All revisions after `since`, slice by slice."""
    found: list[Revision] = []
    while got := desk.ask(Changes(since, limit)).result:
        found += got
        since = got[-1].number
    return found


def numbers(revisions: list[Revision]) -> list[int]:
    return [revision.number for revision in revisions]


def shown(revision: Revision) -> dict[bytes, bytes | None]:
    return {key: None if record is None else value_of(record) for key, record in revision.changes}


# -- what there is --


def test_every_revision_comes_once_in_order_and_whole() -> None:
    desk = Desk()
    desk.ask(put(b"a"))
    desk.ask(batch(put(b"b"), put(b"a", b"2"), Delete(b"none")))
    desk.now += 5
    desk.ask(Open("t"))
    desk.ask(Begin("t"))
    desk.ask(put(b"c", b"t", "t"))
    desk.ask(Commit("t"))
    desk.ask(Delete(b"b", "t"))
    assert len(follow(desk, 0)) == 2
    desk.ask(Commit("t"))
    desk.ask(DeleteRange(b"", None))
    found = follow(desk, 0)
    assert numbers(found) == [1, 2, 3, 4]
    assert [shown(one) for one in found] == [
        {b"a": b"1"},
        {b"b": b"1", b"a": b"2"},
        {b"b": None, b"c": b"t"},
        {b"a": None, b"c": None},
    ]
    assert [one.time for one in found] == [desk.now - 5, desk.now - 5, desk.now, desk.now]
    assert follow(desk, 2) == found[2:]
    assert follow(desk, 4) == []
    assert desk.ask(Changes(0, 1)).result == found[:1]
    assert follow(desk, 0, limit=1) == found


def test_what_changes_nothing_is_not_in_the_feed() -> None:
    desk = Desk()
    desk.ask(put(b"a"))
    desk.ask(batch(put(b"b"), Delete(b"b")))
    desk.ask(DeleteRange(b"x", None))
    desk.ask(put(b"b"))
    assert [shown(one) for one in follow(desk, 0)] == [{b"a": b"1"}, {b"b": b"1"}]


def test_an_expiry_is_a_deletion() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.now += 10
    waiting = desk.ask(Changes(1, 9, wait=True))
    assert follow(desk, 1) == []
    desk.tell(TICK)
    assert [shown(one) for one in waiting.result] == [{b"a": None}]


def test_what_is_kept_for_an_idempotency_key_is_part_of_its_revision_under_a_hidden_key() -> None:
    desk = Desk()
    desk.ask(put(b"a", once=ONCE))
    (revision,) = follow(desk, 0)
    assert [key for key, _ in revision.changes] == [b"a", HIDDEN + ONCE.key]


@pytest.mark.parametrize("restart", [True, False])
def test_history_beyond_what_is_in_memory_comes_from_the_journal(
    restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TAIL", 5)
    monkeypatch.setattr(feed, "SLICE", 3)
    journal, tree = CountingJournal(), MemoryTree()
    desk = Desk(journal, tree)
    for n in range(1, 13):
        desk.ask(put(b"a", b"%d" % n))
    if restart:
        desk = Desk(journal, tree)
    journal.replays = 0
    for since in range(13):
        found = follow(desk, since)
        assert numbers(found) == list(range(since + 1, 13))
        assert [shown(one)[b"a"] for one in found] == [b"%d" % n for n in range(since + 1, 13)]
    assert journal.replays > 0
    journal.replays = 0
    follow(desk, 7)
    # What is in memory is not read again.
    assert (journal.replays == 0) is not restart
    desk.ask(put(b"a", b"13"))
    assert numbers(follow(desk, 0)) == list(range(1, 14))
    assert numbers(follow(desk, 12)) == [13]


def test_in_memory_are_as_many_of_the_newest_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "TAIL_SIZE", 1000)
    journal = CountingJournal()
    desk = Desk(journal)
    reads = []
    for size in (300, 300, 300, 2000, 10):
        desk.ask(put(b"a", b"v" * size))
        journal.replays = 0
        assert numbers(follow(desk, 0)) == list(range(1, desk.owner.revision + 1))
        reads.append(journal.replays)
    # The large one does not fit, nor does what is older than it.
    assert reads[:3] == [0, 0, 1]
    assert reads[3] > 0
    journal.replays = 0
    assert numbers(follow(desk, 4)) == [5]
    assert journal.replays == 0


def test_an_answer_is_a_slice_of_so_many_revisions_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    for _ in range(feed.SLICE + 1):
        desk.ask(put(b"a"))
    assert numbers(desk.ask(Changes(0, 1000)).result) == list(range(1, feed.SLICE + 1))
    assert numbers(desk.ask(Changes(1, 1000)).result) == list(range(2, feed.SLICE + 2))
    monkeypatch.setattr(feed, "SLICE_SIZE", 1000)
    head = desk.owner.revision
    for n in range(4):
        desk.ask(put(b"%d" % n + b"k" * 400, b"v" * 100))
    # The one that goes beyond is the last; there is always one.
    assert len(desk.ask(Changes(head, 1000)).result) == 2
    head = desk.owner.revision
    desk.ask(DeleteRange(b"0", b"4"))
    desk.ask(put(b"a"))
    assert numbers(desk.ask(Changes(head, 1000)).result) == [head + 1]


# -- what there is not --


def test_history_that_is_trimmed_is_gone_and_the_answer_names_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    journal, tree = HeldJournal(holding=False), MemoryTree()
    settings = Settings(memtable_size=1, history=4)
    desk = Desk(journal, tree, settings)
    for _ in range(10):
        desk.ask(put(b"a"))
    oldest = min(journal.rows)
    assert 1 < oldest < 9
    for one in (desk, Desk(journal, tree, settings)):
        for since in (0, oldest - 2):
            error = one.ask(Changes(since, 9)).error
            assert isinstance(error, HistoryGone)
            assert error.details == {"oldest": oldest}
        assert numbers(follow(one, oldest - 1)) == list(range(oldest, 11))
    assert isinstance(desk.ask(Changes(0, 9, wait=True)).error, HistoryGone)


def test_the_oldest_that_is_kept_may_be_in_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "TAIL", 5)
    journal = MemoryJournal()
    desk = Desk(journal, settings=Settings(memtable_size=1, history=1))
    for _ in range(10):
        desk.ask(put(b"a"))
    assert min(journal.rows) > 6
    error = desk.ask(Changes(0, 9)).error
    assert isinstance(error, HistoryGone)
    assert error.details == {"oldest": 6}
    assert numbers(follow(desk, 5)) == [6, 7, 8, 9, 10]


def test_when_nothing_at_all_is_kept_the_next_revision_is_the_oldest() -> None:
    journal, tree = MemoryJournal(), MemoryTree()
    settings = Settings(memtable_size=1)
    desk = Desk(journal, tree, settings)
    for _ in range(3):
        desk.ask(put(b"a"))
    journal.rows.clear()
    again = Desk(journal, tree, settings)
    error = again.ask(Changes(0, 9)).error
    assert isinstance(error, HistoryGone)
    assert error.details == {"oldest": 4}
    assert follow(again, 3) == []


@pytest.mark.parametrize("wait", [True, False])
def test_a_reader_from_the_future_is_told_so(wait: bool) -> None:
    desk, journal = held_with(b"a")
    staged = desk.ask(put(b"b"))
    # It is staged, and so for a reader it is not there yet.
    said = desk.ask(Changes(2, 9, wait))
    assert isinstance(said.error, RevisionInFuture)
    assert said.revision == 1
    catch_up(desk, journal)
    assert staged.answered
    assert desk.ask(Changes(2, 9)).result == []


# -- waiting --


def test_who_waits_is_answered_by_the_next_flush_with_all_of_it() -> None:
    desk, journal = held_with(b"a")
    early, late = desk.ask(Changes(1, 9, wait=True)), desk.ask(Changes(0, 9, wait=True))
    assert numbers(late.result) == [1]
    desk.ask(put(b"b"))
    desk.ask(put(b"c"))
    desk.ask(put(b"d"))
    assert desk.ask(Changes(1, 9)).result == []
    assert not early.answered
    journal.release()
    desk.settle()
    assert (early.revision, numbers(early.result)) == (2, [2])
    again = desk.ask(Changes(2, 1, wait=True))
    assert not again.answered
    catch_up(desk, journal)
    assert (again.revision, numbers(again.result)) == (4, [3])
    assert numbers(follow(desk, 2)) == [3, 4]


def test_what_is_in_the_journal_but_not_told_to_the_owner_is_not_in_the_feed_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    desk, journal = held_with(b"a", b"b", b"c")
    waiting = desk.ask(Changes(3, 9, wait=True))
    written = desk.ask(put(b"d"))
    journal.release()
    # On disk, but the news of it has not been read.
    assert max(journal.rows) == 4
    said: Said[Any] = desk.send(Changes(0, 9))
    assert (said.revision, numbers(said.result)) == (3, [1, 2, 3])
    assert desk.send(Changes(3, 9)).result == []
    assert isinstance(desk.send(Changes(4, 9)).error, RevisionInFuture)
    assert not waiting.answered
    assert not written.answered
    desk.settle()
    assert written.revision == 4
    assert numbers(waiting.result) == [4]


def test_the_writer_is_answered_before_the_readers() -> None:
    desk, journal = held_with()
    heard: list[str] = []
    reader: Said[Any] = Said(lambda: heard.append("reader"))
    writer: Said[Any] = Said(lambda: heard.append("writer"))
    desk.owner.drain(desk.now, [(Changes(0, 9, wait=True), reader), (put(b"a"), writer)])
    catch_up(desk, journal)
    assert heard == ["writer", "reader"]


def test_a_stop_answers_who_waits_with_nothing_and_makes_nobody_wait_after_it() -> None:
    journal, tree = HeldJournal(holding=False), HeldTree()
    desk = Desk(journal, tree)
    desk.ask(put(b"a"))
    waiting = [desk.ask(Changes(1, 9, wait=True)) for _ in range(2)]
    desk.tell(Stop())
    assert [said.result for said in waiting] == [[], []]
    assert desk.ask(Changes(1, 9, wait=True)).result == []
    assert numbers(follow(desk, 0)) == [1]


def test_a_reader_that_is_gone_is_forgotten_by_the_tick_and_harms_nobody() -> None:
    desk = Desk()
    gone, here = desk.ask(Changes(0, 9, wait=True)), desk.ask(Changes(0, 9, wait=True))
    feed = desk.owner._feed
    gone.cancelled = True
    assert len(feed) == 2
    desk.tell(TICK)
    assert len(feed) == 1
    here.cancelled = True
    stays = desk.ask(Changes(0, 9, wait=True))
    desk.ask(put(b"a"))
    assert [said.answered for said in (gone, here, stays)] == [False, False, True]
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
