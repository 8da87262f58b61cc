"""One suite over all implementations of the two protocols."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvactor.core import records
from kvactor.core.protocols import Journal, Tree
from kvactor.core.records import MISSING, NEVER, TOMBSTONE, Entry, Revision, without_value
from kvactor.core.work import BYTES, STEP, UNCHARGED, Work
from kvactor.errors import RequestTooExpensive
from kvactor.storage.journal import LmdbJournal
from kvactor.storage.memory import MemoryJournal, MemoryTree
from kvactor.storage.tree import LmdbTree

MAP_SIZE = 1 << 30

Finished = Callable[[Callable[[Callable[[BaseException | None], None]], None]], BaseException | None]


def finished(start: Callable[[Callable[[BaseException | None], None]], None]) -> BaseException | None:
    """Start something that takes a `done`, wait until it calls it, and return what it said."""
    event, reply = Event(), []

    def done(error: BaseException | None) -> None:
        reply.append(error)
        event.set()

    start(done)
    assert event.wait(30)
    assert len(reply) == 1
    return reply[0]


def append(journal: Journal, *numbers: int) -> BaseException | None:
    return finished(lambda done: journal.append([revision(number) for number in numbers], done))


def fold(tree: Tree, changes: dict[bytes, Entry], applied: int) -> None:
    assert finished(lambda done: tree.fold(sorted(changes.items()), applied, done)) is None
    tree.snapshot()


def revision(number: int) -> Revision:
    return Revision(
        number, 0, ((b"k%d" % number, records.encode(b"k%d" % number, b"v", "")), (b"gone", None))
    )


def record(key: bytes, value: bytes = b"v", expires_at: int = NEVER) -> bytes:
    return records.encode(key, value, "text/plain", expires_at, 1, 1)


@pytest.fixture(params=["memory", "lmdb"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    journal: Journal = MemoryJournal() if request.param == "memory" else LmdbJournal(tmp_path, MAP_SIZE)
    yield journal
    journal.close()


@pytest.fixture(params=["memory", "lmdb"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    tree: Tree = MemoryTree() if request.param == "memory" else LmdbTree(tmp_path, MAP_SIZE)
    yield tree
    tree.close()


def test_a_journal_replays_what_was_appended_in_order(journal: Journal) -> None:
    assert journal.head() == 0
    assert list(journal.replay(0)) == []
    assert append(journal, 1, 2) is None
    assert append(journal, 3) is None
    assert journal.head() == 3
    assert list(journal.replay(0)) == [revision(1), revision(2), revision(3)]
    assert list(journal.replay(2)) == [revision(3)]
    assert list(journal.replay(3)) == []
    assert journal.free_space() > 0


def forget(journal: Journal) -> None:
    """Forget all that may be forgotten, piece by piece."""
    replies: list[bool] = []

    def once(done: Callable[[BaseException | None], None]) -> None:
        def forgotten(more: bool, error: BaseException | None) -> None:
            replies.append(more)
            done(error)

        journal.forget(forgotten)

    for _ in range(100):
        assert finished(once) is None
        if not replies[-1]:
            return
    pytest.fail("there is always more to forget")


def numbers(journal: Journal) -> list[int]:
    return [one.number for one in journal.replay(0)]


def test_a_journal_forgets_what_may_be_trimmed_with_later_appends(journal: Journal) -> None:
    append(journal, *range(1, 200))
    journal.trim(150, sys.maxsize, 180)
    for number in range(200, 210):
        append(journal, number)
    assert numbers(journal) == list(range(150, 210))
    assert journal.head() == 209


def test_a_journal_forgets_what_may_be_trimmed_without_an_append(journal: Journal) -> None:
    append(journal, *range(1, 3000))
    forget(journal)
    assert numbers(journal) == list(range(1, 3000))
    journal.trim(2500, sys.maxsize, 2800)
    forget(journal)
    assert numbers(journal) == list(range(2500, 3000))
    journal.trim(2990, sys.maxsize, 2600)
    forget(journal)
    assert numbers(journal) == list(range(2601, 3000))
    assert journal.head() == 2999
    append(journal, 3000)
    assert journal.head() == 3000


def test_a_journal_never_forgets_its_newest_revision(journal: Journal) -> None:
    append(journal, *range(1, 200))
    journal.trim(1000, 0, 1000)
    forget(journal)
    assert (numbers(journal), journal.head()) == ([199], 199)
    append(journal, 200)
    assert (numbers(journal), journal.head()) == ([200], 200)


def append_large(journal: Journal, number: int) -> None:
    large = Revision(number, 0, ((b"k", records.encode(b"k", bytes(1 << 20), "")),))
    assert finished(lambda done: journal.append([large], done)) is None


@pytest.mark.parametrize("appending", [True, False])
def test_a_journal_forgets_the_oldest_beyond_a_size_but_nothing_that_is_not_folded(
    journal: Journal, appending: bool
) -> None:
    # One more than ten would have more than eleven megabytes.
    size, folded = 11 << 20, 25
    if appending:
        journal.trim(0, size, folded)
    for number in range(1, 31):
        append_large(journal, number)
    journal.trim(0, size, folded)
    forget(journal)
    assert numbers(journal) == list(range(21, 31))
    journal.trim(0, 0, folded)
    forget(journal)
    assert numbers(journal) == list(range(26, 31))


def test_the_pages_that_a_journal_has_freed_are_used_again(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path, MAP_SIZE)
    file = tmp_path / "data.mdb"
    for number in range(1, 31):
        append_large(journal, number)
    grown = file.stat().st_size
    assert journal.reusable().size < 1 << 20
    journal.trim(31, sys.maxsize, 30)
    forget(journal)
    assert grown - (2 << 20) < journal.reusable().size < grown
    for number in range(31, 51):
        append_large(journal, number)
    # Pages that a commit has freed are used from the next but one on.
    assert file.stat().st_size <= grown + (2 << 20)
    assert journal.reusable().size < 12 << 20
    journal.close()


def test_the_pages_that_a_tree_has_freed_are_told(tmp_path: Path) -> None:
    tree = LmdbTree(tmp_path, MAP_SIZE)
    fold(tree, {b"%d" % number: record(b"%d" % number, bytes(1 << 20)) for number in range(10)}, 1)
    assert tree.reusable().size < 1 << 20
    fold(tree, {b"%d" % number: TOMBSTONE for number in range(10)}, 2)
    assert 10 << 20 < tree.reusable().size < 12 << 20
    tree.close()


def test_p8_the_next_fold_uses_the_pages_that_a_fold_has_freed(tmp_path: Path) -> None:
    tree = LmdbTree(tmp_path, MAP_SIZE)
    records: dict[bytes, Entry] = {
        b"%d" % number: record(b"%d" % number, bytes(1 << 20)) for number in range(10)
    }
    fold(tree, records, 1)
    fold(tree, dict.fromkeys(records, TOMBSTONE), 2)
    size = (tmp_path / "data.mdb").stat().st_size
    fold(tree, records, 3)
    assert (tmp_path / "data.mdb").stat().st_size == size
    tree.close()


def test_p8_the_next_append_uses_the_pages_that_were_forgotten(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path, MAP_SIZE)
    for number in range(1, 11):
        append_large(journal, number)
    journal.trim(10, sys.maxsize, 10)
    forget(journal)
    size = (tmp_path / "data.mdb").stat().st_size
    assert journal.reusable().pieces < 20
    append_large(journal, 11)
    assert (tmp_path / "data.mdb").stat().st_size == size
    journal.close()


def test_a_tree_answers_from_its_last_snapshot(tree: Tree) -> None:
    assert (tree.applied, tree.keys, tree.get(b"a", UNCHARGED)) == (0, 0, MISSING)
    fold(tree, {b"a": record(b"a"), b"b": record(b"b")}, 7)
    assert (tree.applied, tree.keys, tree.get(b"a", UNCHARGED)) == (7, 2, record(b"a"))
    fold(tree, {b"a": TOMBSTONE, b"b": record(b"b", b"new"), b"never": TOMBSTONE}, 9)
    assert (tree.applied, tree.keys) == (9, 1)
    assert (tree.get(b"a", UNCHARGED), tree.get(b"b", UNCHARGED)) == (MISSING, record(b"b", b"new"))


def test_a_tree_charges_what_it_walks_before_it_reads_it(tree: Tree) -> None:
    large = record(b"b", bytes(100 * BYTES))
    fold(tree, {b"a": record(b"a"), b"b": large, b"c": record(b"c")}, 1)
    work = Work()
    assert len(list(tree.range(b"", None, False, False, work))) == 3
    assert work.spent == 3 * STEP
    assert tree.head(b"b", work) == without_value(large)
    assert tree.head(b"d", work) is MISSING
    assert work.spent == 3 * STEP
    with pytest.raises(RequestTooExpensive):
        list(tree.range(b"", None, False, True, Work(STEP)))


KEY = st.binary(min_size=1, max_size=3)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keys=st.sets(KEY, max_size=12), start=st.just(b"") | KEY, end=st.none() | KEY, reverse=st.booleans()
)
def test_a_range_equals_that_of_a_sorted_dict(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    keys: set[bytes],
    start: bytes,
    end: bytes | None,
    reverse: bool,
) -> None:
    tree: Tree = (
        MemoryTree() if kind == "memory" else LmdbTree(tmp_path_factory.mktemp("tree"), MAP_SIZE)
    )
    fold(tree, {key: record(key) for key in keys}, 1)
    expected = [
        key for key in sorted(keys, reverse=reverse) if start <= key and (end is None or key < end)
    ]
    found = list(tree.range(start, end, reverse, True, UNCHARGED))
    assert found == [(key, record(key)) for key in expected]
    heads = list(tree.range(start, end, reverse, False, UNCHARGED))
    assert heads == [(key, without_value(record(key))) for key in expected]
    tree.close()


def test_expiries_come_in_order_and_follow_every_change(tree: Tree) -> None:
    longest = b"x" * 511
    fold(tree, {b"a": record(b"a", b"", 5), b"b": record(b"b", b"", 5), b"c": record(b"c", b"", 3)}, 1)
    fold(tree, {longest: record(longest, b"", 5), b"d": record(b"d", b"", 9), b"e": record(b"e")}, 2)
    assert list(tree.expired((0, b""), 5)) == [(3, b"c"), (5, b"a"), (5, b"b"), (5, longest)]
    assert list(tree.expired((5, b"a"), 9)) == [(5, b"b"), (5, longest), (9, b"d")]
    assert list(tree.expired((5, longest), 8)) == []
    assert list(tree.expired((5, longest), 9)) == [(9, b"d")]
    fold(tree, {b"a": TOMBSTONE, b"b": record(b"b", b"", 6), b"c": record(b"c")}, 3)
    assert list(tree.expired((0, b""), 8)) == [(5, longest), (6, b"b")]
    assert list(tree.expired((0, b""), 2)) == []
