"""The feed: every revision once, in order, once it is durable, from wherever a reader is."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from kvactor.actor import StoreActor
from kvactor.core import feed
from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import Begin, Changes, Commit, Open, Stop
from kvactor.core.operations import Delete
from kvactor.core.protocols import StorageFailed
from kvactor.core.records import HIDDEN, Revision, value_of
from kvactor.errors import (
    DataDamaged,
    HistoryGone,
    OutcomeUnknown,
    Overloaded,
    RecordDamaged,
    RevisionInFuture,
)
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
    value,
)
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness, RecordingReply

#: Seconds after which an event that is waited for has failed to happen.
PATIENCE = 10


class CountingJournal(HeldJournal):
    """A journal that knows how often it was read."""

    def __init__(self) -> None:
        super().__init__(holding=False)
        self.replays = 0
        #: revisions that were decoded
        self.replayed = 0

    def replay(self, after: int) -> Iterator[Revision]:
        self.replays += 1
        for revision in super().replay(after):
            self.replayed += 1
            yield revision


def follow(harness: OwnerHarness, since: int, limit: int = 1 << 20) -> list[Revision]:
    """All revisions after `since`, slice by slice."""
    found: list[Revision] = []
    while got := harness.ask(Changes(since, limit)).result:
        found += got
        since = got[-1].number
    return found


def numbers(revisions: list[Revision]) -> list[int]:
    return [revision.number for revision in revisions]


async def ended(actor: StoreActor) -> None:
    """Wait until the owner has failed."""
    await asyncio.wait({actor.done}, timeout=PATIENCE)
    assert actor.done.done()
    # A future whose exception nobody asks for prints it when it is collected, in the midst of anything.
    actor.done.exception()


def outcomes(asked: Iterable["asyncio.Future[Any]"]) -> list[type | None]:
    """Return the types of what was raised to those who asked, all of them; None: there is none yet."""
    return [type(one.exception()) if one.done() else None for one in asked]


def values_of(revision: Revision) -> dict[bytes, bytes | None]:
    return {key: None if record is None else value_of(record) for key, record in revision.changes}


# -- revisions --


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


def test_a_request_that_changes_nothing_is_not_in_the_feed() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a"))
    harness.ask(batch(put(b"b"), Delete(b"b")))
    harness.ask(delete_range(b"x", None))
    harness.ask(put(b"b"))
    assert [values_of(one) for one in follow(harness, 0)] == [{b"a": b"1"}, {b"b": b"1"}]


def test_an_expiry_is_a_deletion_in_the_feed() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    waiting = harness.ask(Changes(1, 9, wait=True))
    assert follow(harness, 1) == []
    harness.tell(TICK)
    assert [values_of(one) for one in waiting.result] == [{b"a": None}]


def test_a_response_kept_for_an_idempotency_key_is_part_of_its_revision_under_a_hidden_key() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", idempotency_key=IDEMPOTENCY_KEY))
    (revision,) = follow(harness, 0)
    assert [key for key, _ in revision.changes] == [b"a", HIDDEN + IDEMPOTENCY_KEY.key]


@pytest.mark.parametrize("restart", [True, False])
def test_revisions_older_than_the_tail_come_from_the_journal(
    restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TAIL", 5)
    monkeypatch.setattr(feed, "REVISIONS_PER_READ", 3)
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
    # The tail is not read again.
    assert (journal.replays == 0) is not restart
    harness.ask(put(b"a", b"13"))
    assert numbers(follow(harness, 0)) == list(range(1, 14))
    assert numbers(follow(harness, 12)) == [13]


def test_the_tail_holds_as_many_of_the_newest_revisions_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_answer_is_cut_after_so_many_revisions_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = OwnerHarness()
    for _ in range(feed.REVISIONS_PER_READ + 1):
        harness.ask(put(b"a"))
    assert numbers(harness.ask(Changes(0, 1000)).result) == list(range(1, feed.REVISIONS_PER_READ + 1))
    assert numbers(harness.ask(Changes(1, 1000)).result) == list(range(2, feed.REVISIONS_PER_READ + 2))
    monkeypatch.setattr(feed, "BYTES_PER_READ", 1000)
    head = harness.owner.revision
    for n in range(4):
        harness.ask(put(b"%d" % n + b"k" * 400, b"v" * 100))
    # The revision that goes beyond the limit is the last; there is always one.
    assert len(harness.ask(Changes(head, 1000)).result) == 2
    head = harness.owner.revision
    harness.ask(delete_range(b"0", b"4"))
    harness.ask(put(b"a"))
    assert numbers(harness.ask(Changes(head, 1000)).result) == [head + 1]


# -- revisions that are gone, or not there yet --


def test_a_reader_of_trimmed_history_gets_an_error_that_names_the_oldest_revision(
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


def test_the_oldest_revision_may_be_kept_in_the_tail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_oldest_revision_of_an_empty_history_is_the_next_one() -> None:
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
def test_a_reader_of_a_revision_that_is_not_durable_yet_gets_an_error(wait: bool) -> None:
    harness, journal = held_with(b"a")
    staged = harness.ask(put(b"b"))
    # It is staged, and so not there yet for a reader.
    reply = harness.ask(Changes(2, 9, wait))
    assert isinstance(reply.error, RevisionInFuture)
    assert reply.revision == 1
    catch_up(harness, journal)
    assert staged.answered
    assert harness.ask(Changes(2, 9)).result == []


# -- waiting --


def test_a_waiting_reader_is_answered_at_the_next_flush_with_all_its_revisions() -> None:
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


def test_a_revision_is_not_in_the_feed_before_the_owner_knows_that_it_is_durable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    harness, journal = held_with(b"a", b"b", b"c")
    waiting = harness.ask(Changes(3, 9, wait=True))
    written = harness.ask(put(b"d"))
    journal.release()
    # On disk, but the news of it has not been read.
    assert max(journal.rows) == 4
    flushed = harness.news.pop()
    reply: RecordingReply[Any] = harness.ask(Changes(0, 9))
    assert (reply.revision, numbers(reply.result)) == (3, [1, 2, 3])
    assert harness.send(Changes(3, 9)).result == []
    assert isinstance(harness.send(Changes(4, 9)).error, RevisionInFuture)
    assert not waiting.answered
    assert not written.answered
    harness.tell(flushed)
    assert written.revision == 4
    assert numbers(waiting.result) == [4]


def test_the_writer_is_answered_before_the_readers() -> None:
    harness, journal = held_with()
    answered: list[str] = []
    reader: RecordingReply[Any] = RecordingReply(lambda: answered.append("reader"))
    writer: RecordingReply[Any] = RecordingReply(lambda: answered.append("writer"))
    asked = [(Changes(0, 9, wait=True), reader, UNCOUNTED), (put(b"a"), writer, UNCOUNTED)]
    harness.owner.drain(harness.now, asked)
    catch_up(harness, journal)
    assert answered == ["writer", "reader"]


def test_a_stop_answers_waiting_readers_with_nothing_and_no_reader_waits_after_it() -> None:
    journal, tree = HeldJournal(holding=False), HeldTree()
    harness = OwnerHarness(journal, tree)
    harness.ask(put(b"a"))
    waiting = [harness.ask(Changes(1, 9, wait=True)) for _ in range(2)]
    harness.tell(Stop())
    assert [reply.result for reply in waiting] == [[], []]
    assert harness.ask(Changes(1, 9, wait=True)).result == []
    assert numbers(follow(harness, 0)) == [1]


def test_a_reader_that_has_gone_away_is_forgotten_by_the_tick_and_by_the_next_flush() -> None:
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


def test_readers_that_go_away_between_two_ticks_do_not_pile_up() -> None:
    harness = OwnerHarness()
    stays = harness.ask(Changes(0, 9, wait=True))
    for _ in range(1000):
        harness.ask(Changes(0, 9, wait=True)).cancelled = True
        assert len(harness.owner._feed) <= feed.SWEEP_AT
    harness.ask(put(b"a"))
    assert stays.answered


async def test_waiting_readers_are_answered_when_a_flush_fails() -> None:
    journal = HeldJournal()
    actor = StoreActor(Storage(journal, MemoryTree()), Settings())
    await actor.start()
    reader = actor.ask(Changes(0, 9, wait=True))
    written = actor.ask(put(b"a"))
    while not journal.pending:
        assert not actor.done.done()
        await asyncio.sleep(0)
    journal.break_down(OSError(5, "Input/output error"))
    await ended(actor)
    assert outcomes([reader, written]) == [OutcomeUnknown] * 2
    assert isinstance(actor.done.exception(), StorageFailed)


async def test_waiting_readers_are_answered_when_the_owner_fails_while_it_answers_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = StoreActor(Storage(MemoryJournal(), MemoryTree()), Settings())
    await actor.start()
    waiting = [actor.ask(Changes(0, 9, wait=True)) for _ in range(3)]
    read = feed.Feed.read
    reads = iter([True, True, True, True, False])

    def broken(feed_: feed.Feed, *arguments: int) -> list[Revision] | None:
        if not next(reads):
            raise ZeroDivisionError("a fault of ours")
        return read(feed_, *arguments)

    monkeypatch.setattr(feed.Feed, "read", broken)
    written = actor.ask(put(b"a"))
    await ended(actor)
    assert outcomes([written, *waiting]) == [type(None)] * 2 + [OutcomeUnknown] * 2


# -- revisions older than the tail, which the journal reads beside the owner --


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> tuple[OwnerHarness, HeldJournal]:
    """An owner with five revisions, of which one is in the tail, and a journal whose reads wait."""
    monkeypatch.setattr(feed, "TAIL", 1)
    harness, journal = held_with(b"a", b"b", b"c", b"d", b"e")
    journal.holding = False
    journal.holding_reads = True
    return harness, journal


Reading = tuple[OwnerHarness, HeldJournal]


def test_readers_of_the_same_revisions_share_one_reading(reading: Reading) -> None:
    harness, journal = reading
    replies = [harness.ask(Changes(since, limit)) for since, limit in ((0, 9), (0, 2), (1, 9), (0, 9))]
    assert [since for since, *_ in journal.reads] == [0, 1]
    # Neither the owner nor a reader of the tail waits for it.
    assert numbers(harness.ask(Changes(4, 9)).result) == [5]
    assert value(harness, b"a") == b"1"
    assert not any(reply.answered for reply in replies)
    journal.release_read()
    harness.settle()
    assert [reply.answered for reply in replies] == [True, True, False, True]
    journal.release_read()
    harness.settle()
    assert [numbers(reply.result) for reply in replies] == [
        [1, 2, 3, 4, 5],
        [1, 2],
        [2, 3, 4, 5],
        [1, 2, 3, 4, 5],
    ]
    # The next reader's reading is a new one.
    again = harness.ask(Changes(0, 1))
    assert [since for since, *_ in journal.reads] == [0]
    journal.release_read()
    harness.settle()
    assert numbers(again.result) == [1]


def test_a_revision_that_is_flushed_during_a_reading_may_be_part_of_it(reading: Reading) -> None:
    harness, journal = reading
    reader = harness.ask(Changes(3, 9, wait=True))
    assert harness.ask(put(b"f")).revision == 6
    harness.now += 5
    journal.release_read()
    harness.settle()
    assert (reader.revision, reader.time, numbers(reader.result)) == (6, harness.now, [4, 5, 6])


def test_history_that_is_trimmed_during_a_reading_is_gone(reading: Reading) -> None:
    harness, journal = reading
    reader = harness.ask(Changes(0, 9))
    for number in (1, 2):
        del journal.rows[number]
    journal.release_read()
    harness.settle()
    assert isinstance(reader.error, HistoryGone)
    assert reader.error.details == {"oldest": 3}


def test_a_reader_that_goes_away_during_a_reading_harms_no_other(reading: Reading) -> None:
    harness, journal = reading
    gone, here = harness.ask(Changes(0, 9)), harness.ask(Changes(0, 9))
    gone.cancelled = True
    harness.tell(TICK)
    journal.release_read()
    harness.settle()
    assert (gone.answered, numbers(here.result)) == (False, [1, 2, 3, 4, 5])


def test_readers_of_a_damaged_revision_get_an_error_and_the_owner_goes_on(reading: Reading) -> None:
    harness, journal = reading
    replies = [harness.ask(Changes(0, 9)) for _ in range(2)]
    journal.release_read(DataDamaged("Revision 1 fails its checksum."))
    harness.settle()
    for reply in replies:
        assert isinstance(reply.error, RecordDamaged)
        assert str(reply.error).startswith("Revision 1 fails its checksum.")
        assert (reply.revision, reply.time) == (5, harness.now)
    assert harness.ask(put(b"f")).revision == 6


def test_the_revisions_before_a_damaged_one_are_read(reading: Reading) -> None:
    harness, journal = reading
    journal.rows[3] = b"damaged" + journal.rows[3]
    first, second = harness.ask(Changes(0, 9)), harness.ask(Changes(2, 9))
    while journal.reads:
        journal.release_read()
        harness.settle()
    assert numbers(first.result) == [1, 2]
    assert isinstance(second.error, RecordDamaged)


def test_a_stop_waits_for_the_readings_that_are_under_way(reading: Reading) -> None:
    harness, journal = reading
    reader = harness.ask(Changes(0, 9, wait=True))
    harness.tell(Stop())
    assert (reader.answered, harness.owner.finished) == (False, False)
    journal.release_read()
    harness.settle()
    assert (numbers(reader.result), harness.owner.finished) == ([1, 2, 3, 4, 5], True)


class Answering(StoreActor):
    """An actor with three revisions, all older than the tail, and a journal whose reads wait."""

    def __init__(self) -> None:
        self.journal = HeldJournal(holding=False)
        harness = OwnerHarness(self.journal)
        for key in (b"a", b"b", b"c"):
            harness.ask(put(key))
        self.journal.holding = self.journal.holding_reads = True
        super().__init__(Storage(self.journal, MemoryTree()), Settings())

    async def read(self, readers: int) -> list[asyncio.Future[Any]]:
        """Ask, and wait until the journal reads."""
        asked: list[asyncio.Future[Any]] = [self.ask(Changes(0, 9)) for _ in range(readers)]
        async with asyncio.timeout(PATIENCE):
            while not self.journal.reads:
                await asyncio.sleep(0)
        return asked


async def test_readers_during_a_reading_are_answered_when_a_flush_fails() -> None:
    actor = Answering()
    await actor.start()
    readers = await actor.read(2)
    written = actor.ask(put(b"d"))
    async with asyncio.timeout(PATIENCE):
        while not actor.journal.pending:
            await asyncio.sleep(0)
    actor.journal.break_down(OSError(5, "Input/output error"))
    await ended(actor)
    assert outcomes([*readers, written]) == [OutcomeUnknown] * 3
    assert isinstance(actor.done.exception(), StorageFailed)


async def test_readers_are_answered_and_the_owner_fails_when_the_journal_cannot_be_read() -> None:
    actor = Answering()
    await actor.start()
    readers = await actor.read(2)
    actor.journal.release_read(OSError(5, "Input/output error"))
    await ended(actor)
    assert outcomes(readers) == [OutcomeUnknown] * 2
    error = actor.done.exception()
    assert isinstance(error, StorageFailed)
    assert isinstance(error.__cause__, OSError)


async def test_readers_of_a_reading_are_answered_when_the_owner_fails_while_it_answers_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = Answering()
    await actor.start()
    readers = await actor.read(3)
    history = feed.Feed.history
    answers = iter([True, False])

    def broken(feed_: feed.Feed, *arguments: Any) -> list[Revision]:
        if not next(answers):
            raise ZeroDivisionError("a fault of ours")
        return history(feed_, *arguments)

    monkeypatch.setattr(feed.Feed, "history", broken)
    actor.journal.release_read()
    await ended(actor)
    assert outcomes(readers) == [type(None)] + [OutcomeUnknown] * 2
    assert numbers(readers[0].result().result) == [1, 2, 3]


def test_readings_are_bounded_and_a_reader_over_the_bound_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    monkeypatch.setattr(feed, "MAX_READINGS", 2)
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    for _ in range(5):
        harness.ask(put(b"a"))
    journal.holding_reads = True
    waiting = [harness.ask(Changes(since, 9)) for since in (0, 1, 1)]
    assert isinstance(harness.ask(Changes(2, 9)).error, Overloaded)
    assert not any(reply.answered for reply in waiting)
    journal.release_read()
    harness.settle()
    assert numbers(waiting[0].result) == [1, 2, 3, 4, 5]
    assert harness.ask(Changes(2, 9)).error is None


def test_a_stop_does_not_wait_for_readings_whose_readers_have_gone_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    for _ in range(3):
        harness.ask(put(b"a"))
    journal.holding_reads = True
    reader = harness.ask(Changes(0, 9))
    harness.tell(Stop())
    assert not harness.owner.finished
    reader.cancelled = True
    assert harness.owner.finished


def test_a_reading_decodes_no_more_revisions_than_its_reader_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    journal = CountingJournal()
    harness = OwnerHarness(journal)
    for _ in range(5):
        harness.ask(put(b"a"))
    assert numbers(harness.ask(Changes(0, 2)).result) == [1, 2]
    assert journal.replayed == 2
