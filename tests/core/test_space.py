"""Little free space: what is refused, what frees space, and when history is given up."""

from typing import Any

import pytest

from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.messages import Commit, Message, Open
from kvactor.core.operations import Delete, DeleteRange, Get, Set
from kvactor.core.protocols import ForgetDone
from kvactor.core.space import PAGE, FreePages, FreeSpace, Load, Space
from kvactor.errors import StorageFull, WritesStalled
from kvactor.settings import Settings
from tests.core.builders import batch, data, delete, put
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness, SmallJournal

FLOOR = 1 << 20
SETTINGS = Settings(min_free_space=FLOOR, memtable_size=1 << 20)
LOW = FLOOR + FLOOR // 4
NOTHING = Load(0, 0, 0, 0)


def low(free: int = FLOOR // 2, keys: int = 20, settings: Settings = SETTINGS) -> OwnerHarness:
    """Return an owner that has keys k0, k1 ... and is told then that `free` bytes are left."""
    journal = SmallJournal(1 << 40)
    harness = OwnerHarness(journal, settings=settings)
    for number in range(keys):
        harness.send(put(b"k%d" % number))
    harness.send(Open("t"))
    harness.settle()
    journal.free = free
    harness.tick()
    return harness


def history(harness: OwnerHarness) -> list[int]:
    return [revision.number for revision in harness.journal.replay(0)]


DELETIONS: list[Message[Any]] = [
    delete(b"k0"),
    delete(b"k0", idempotency_key=IdempotencyKey(b"1", b"")),
    batch(Delete(b"k0"), DeleteRange(b"k1", b"k2")),
    batch(Get(b"k0"), Delete(b"k0"), idempotency_key=IdempotencyKey(b"1", b"")),
]


@pytest.mark.parametrize("message", DELETIONS)
def test_p8_deletions_go_on_below_the_floor_and_end_above_a_quarter_of_it(
    message: Message[Any],
) -> None:
    harness = low()
    assert isinstance(harness.ask(put(b"a")).error, StorageFull)
    assert harness.ask(message).error is None
    assert b"k0" not in data(harness)
    assert isinstance(low(FLOOR // 4 - 1).ask(message).error, StorageFull)


def test_p8_a_transaction_that_only_deletes_commits_below_the_floor() -> None:
    harness = low()
    assert harness.ask(delete(b"k0", transaction="t")).error is None
    assert isinstance(harness.ask(put(b"a", transaction="t")).error, StorageFull)
    assert harness.ask(Commit("t")).error is None
    assert b"k0" not in data(harness)


def test_p8_a_transaction_that_writes_does_not_commit_below_the_floor() -> None:
    journal = SmallJournal(1 << 40)
    harness = OwnerHarness(journal, settings=SETTINGS)
    harness.ask(put(b"k0"))
    harness.ask(Open("t"))
    harness.ask(batch(Set(b"a", b"", ""), Delete(b"k0"), transaction="t"))
    journal.free = FLOOR // 2
    harness.tick()
    assert isinstance(harness.ask(Commit("t")).error, StorageFull)
    assert set(data(harness)) == {b"k0"}


def test_p8_a_large_response_is_not_kept_below_the_floor() -> None:
    journal = SmallJournal(1 << 40)
    harness = OwnerHarness(journal, settings=SETTINGS)
    harness.ask(put(b"k0", b"v" * 20_000))
    journal.free = FLOOR // 2
    harness.tick()
    message = batch(Get(b"k0"), Delete(b"k0"), idempotency_key=IdempotencyKey(b"1", b""))
    assert isinstance(harness.ask(message).error, StorageFull)


def test_p8_a_fold_of_deletions_has_room_on_the_disk() -> None:
    """Each key may cost a page of the tree, until the old one is free."""
    free, keys = FLOOR // 2, 200
    assert keys * PAGE > free - FLOOR // 4
    harness = low(free, keys)
    harness.ask(Open("u"))
    for number in range(keys):
        assert harness.ask(delete(b"k%d" % number, transaction="u")).error is None
    assert isinstance(harness.ask(Commit("u")).error, StorageFull)
    # One by one they are folded in between.
    for number in range(keys):
        assert harness.ask(delete(b"k%d" % number)).error is None
        assert harness.owner._store.unfolded_keys * PAGE <= free // 4
    assert data(harness) == {}


def test_history_is_given_up_before_writes_are_refused() -> None:
    harness = low(LOW)
    assert history(harness) == list(range(1, 21))
    harness = low(LOW - 1)
    # A fold, and then no more is kept than tells where the journal ends.
    assert (harness.owner._store.folded, history(harness)) == (20, [20])
    assert harness.ask(put(b"a")).error is None


def load(size: int, keys: int = 1) -> Load:
    return Load(size, size, keys, size // keys)


def reading(disk: int, tree: FreePages) -> FreeSpace:
    """So many free pages that the journal never grows."""
    return FreeSpace(disk, FreePages(1 << 40), tree)


def test_p8_free_pages_of_the_tree_are_free_space() -> None:
    half = FLOOR // 2
    space = Space(FLOOR, reading(half, FreePages(half + 200_000)))
    assert space.has_room(load(200_000))
    assert space.left(load(200_000)) == FLOOR
    assert not space.has_room(load(200_001))
    assert space.left(load(200_001)) == FLOOR - 1


def test_p8_free_pages_of_the_journal_are_for_the_journal_alone() -> None:
    full = FreeSpace(FLOOR - 1, FreePages(1 << 40), FreePages())
    assert not Space(FLOOR, full).has_room(NOTHING)


def test_p8_a_write_leaves_half_of_the_floor_on_the_disk_if_free_pages_may_be_scattered() -> None:
    scattered, size = FreePages(4 * FLOOR, pieces=4 * FLOOR // 100_000), 100_000
    enough = FLOOR // 2 + size
    assert Space(FLOOR, reading(enough, scattered)).has_room(load(size))
    space = Space(FLOOR, reading(enough - 1, scattered))
    assert not space.has_room(load(size))
    assert space.left(load(size)) == FLOOR - 1
    # Small rows find a page anywhere, and so do deletions.
    assert space.has_room(load(size, keys=100))


def test_p8_a_write_that_certainly_finds_free_pages_leaves_an_eighth_of_the_floor() -> None:
    emptied = FreePages(4 * FLOOR, pieces=8)
    assert Space(FLOOR, reading(FLOOR // 8, emptied)).has_room(load(100_000))
    assert not Space(FLOOR, reading(FLOOR // 8 - 1, emptied)).has_room(load(100_000))


@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_p8_enough_free_pages_have_a_run_of_them_however_they_lie(pieces: int) -> None:
    """The worst case: all runs are a page too short."""
    pages = 5
    longest = (pages - 1) * (pieces + 1) * PAGE
    assert FreePages(longest, pieces).growth(pages * PAGE, pages * PAGE, 0) > 0
    assert FreePages(longest + pages * PAGE, pieces).growth(PAGE // 4, PAGE // 4, 0) == 0


def test_p8_a_write_is_told_to_try_again_while_a_fold_makes_room() -> None:
    journal, tree = SmallJournal(1 << 40), HeldTree()
    harness = OwnerHarness(journal, tree, settings=SETTINGS)
    harness.ask(put(b"a", bytes(100_000)))
    journal.free = FLOOR
    harness.tick()
    assert tree.pending
    assert isinstance(harness.ask(put(b"b", bytes(100_000))).error, WritesStalled)
    tree.release()
    journal.free = FLOOR - 1
    harness.tick()
    assert isinstance(harness.ask(put(b"b", bytes(100_000))).error, StorageFull)
    journal.free = FLOOR + 300_000
    harness.tick()
    assert harness.ask(put(b"b", bytes(100_000))).error is None


def test_p8_what_is_not_folded_is_folded_when_a_write_is_refused() -> None:
    journal = SmallJournal(2 * FLOOR)
    harness = OwnerHarness(journal, settings=SETTINGS)
    harness.ask(put(b"a", bytes(300_000)))
    assert harness.owner._store.memtable
    assert isinstance(harness.ask(put(b"b", bytes(900_000))).error, WritesStalled)
    assert not harness.owner._store.memtable


def test_a_fold_waits_for_the_disk_if_that_has_no_room_for_it() -> None:
    journal, tree = SmallJournal(1 << 40), HeldTree()
    harness = OwnerHarness(journal, tree, settings=SETTINGS)
    harness.ask(put(b"a", bytes(300_000)))
    journal.free = 300_000
    harness.tick()
    assert not tree.pending
    assert isinstance(harness.ask(put(b"b")).error, StorageFull)
    journal.free = FLOOR
    harness.tick()
    assert tree.pending


def test_what_is_written_between_readings_is_subtracted_once_for_the_journal_and_for_the_tree() -> None:
    journal = HeldJournal()
    harness = OwnerHarness(journal, settings=SETTINGS)
    size = 100_000
    harness.owner.admission.space.note(FreeSpace(FLOOR + 10 * size), 0)
    written = 0
    while harness.send(put(b"%d" % written, bytes(size))).error is None and written < 100:
        written += 1
    assert written in (4, 5)


def test_overwriting_a_key_does_not_add_up() -> None:
    """Each flush reads the free space again, and the tree gets the newest value only."""
    journal = SmallJournal(FLOOR + 400_000)
    harness = OwnerHarness(journal, settings=SETTINGS)
    for _ in range(100):
        assert harness.ask(put(b"a", bytes(100_000))).error is None


def test_a_start_forgets_what_is_more_than_the_history_without_an_append() -> None:
    first = OwnerHarness()
    for number in range(20):
        first.ask(put(b"k%d" % number))
    first.owner.writer._fold()
    first.settle()
    again = OwnerHarness(first.journal, first.tree, Settings(history=5))
    again.tick()
    assert history(first) == list(range(16, 21))
    again = OwnerHarness(first.journal, first.tree, Settings(history=5, history_size=0))
    again.tick()
    assert history(first) == [20]


def test_history_is_bounded_by_its_bytes() -> None:
    harness = OwnerHarness(settings=Settings(history_size=100_000, memtable_size=50_000))
    for number in range(100):
        harness.ask(put(b"k%d" % number, bytes(10_000)))
    harness.tick()
    assert 5 <= len(history(harness)) <= 15
    assert harness.journal.head() == 100


def test_without_a_floor_nothing_is_refused() -> None:
    space = Space(0, FreeSpace(0))
    space.take(1000)
    assert space.has_room(load(1000))
    assert space.has_reserve(load(1000))
    assert space.can_hold(load(1000))
    assert not space.low


class CountingJournal(SmallJournal):
    """A journal that counts how often it is to forget without an append."""

    forgets = 0

    def forget(self, done: ForgetDone) -> None:
        self.forgets += 1
        super().forget(done)


def test_a_tick_forgets_nothing_twice() -> None:
    journal = CountingJournal(LOW - 1)
    harness = OwnerHarness(journal, settings=SETTINGS)
    harness.ask(put(b"a"))
    harness.tick()
    assert journal.forgets > 0
    journal.forgets = 0
    for _ in range(3):
        harness.tick()
    assert journal.forgets == 0


def test_p8_a_batch_is_refused_as_a_whole_if_its_writes_together_have_no_room() -> None:
    journal = SmallJournal(FLOOR + 1_000_000)
    harness = OwnerHarness(journal, settings=SETTINGS)
    sets = [Set(b"%d" % number, bytes(100_000), "") for number in range(10)]
    assert isinstance(harness.ask(batch(*sets)).error, StorageFull)
    assert data(harness) == {}
    assert harness.ask(batch(*sets[:3])).error is None


def test_p8_the_status_tells_less_than_the_floor_while_a_write_is_refused() -> None:
    journal = SmallJournal(FLOOR + 400_000)
    harness = OwnerHarness(journal, settings=SETTINGS)
    admission = harness.owner.admission
    assert (admission.left >= FLOOR, admission.full) == (True, False)
    assert isinstance(harness.ask(put(b"a", bytes(600_000))).error, StorageFull)
    assert isinstance(harness.ask(put(b"a", bytes(500_000))).error, StorageFull)
    assert (admission.left < FLOOR, admission.full) == (True, True)
    # There is room for the smaller one.
    journal.free += 700_000
    harness.tick()
    assert (admission.left >= FLOOR, admission.full) == (True, False)
