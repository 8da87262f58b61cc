"""The way down through the store, step by step, where the owner's tests do not reach."""

import pytest

from kvactor.core.records import NEVER, TOMBSTONE, encode
from kvactor.core.store import OutOfOrder, Store
from kvactor.core.work import UNCHARGED
from kvactor.storage.memory import MemoryTree
from tests.core.harness import HeldTree


def stored(*expiries: int) -> Store:
    """A store whose tree holds a key for each expiry."""
    tree = MemoryTree()
    store = Store(tree)
    store.stage([(b"%d" % n, encode(b"%d" % n, b"v", "", at)) for n, at in enumerate(expiries)], 0)
    store.seal()
    store.apply()
    tree.fold(store.freeze(), store.revision, lambda _: None)
    store.drop_frozen()
    return store


def test_a_sweep_looks_at_no_more_than_its_limit_and_goes_on_from_there() -> None:
    store = stored(1, 2, 3, 4, 5)
    assert store.expired(4, 2) == ([b"0", b"1"], True)
    assert store.expired(4, 2) == ([b"2", b"3"], True)
    assert store.expired(4, 2) == ([], False)
    assert store.expired(5, 2) == ([b"4"], False)


def test_a_key_whose_deletion_is_staged_is_not_swept_again() -> None:
    store = stored(1)
    assert store.stage([(b"0", TOMBSTONE), (b"none", TOMBSTONE)], 5) == [(b"0", None)]
    assert store.expired(5, 9) == ([], False)
    assert (store.pending, store.keys) == (1, 1)


def in_range(store: Store, start: bytes, end: bytes | None) -> int:
    return store.depends_on_range(start, end, UNCHARGED)


def test_an_answer_depends_on_a_staged_or_flushing_key_and_on_no_durable_one() -> None:
    store = Store(MemoryTree())
    store.stage([(b"a", encode(b"a", b"v", ""))], 0)
    assert (store.depends_on(b"a"), store.depends_on(b"b"), in_range(store, b"a", None)) == (1, 0, 1)
    store.seal()
    store.stage([(b"b", encode(b"b", b"v", ""))], 0)
    assert (store.depends_on(b"a"), store.depends_on(b"b")) == (1, 2)
    assert (in_range(store, b"a", b"b"), in_range(store, b"a", b"c")) == (1, 2)
    assert in_range(store, b"c", None) == 0
    assert [revision.number for revision in store.apply()] == [1]
    assert (store.depends_on(b"a"), store.flushing, store.pending) == (0, False, 1)


# -- steps out of order --


def stage(store: Store, key: bytes, now: int = 0) -> None:
    store.stage([(key, encode(key, b"v", ""))], now)


def durable(store: Store) -> list[bytes]:
    """The keys that readers see, from the top of the durable layers to the tree."""
    ranges = store.durable.ranges(b"", None, False, True, UNCHARGED)
    return sorted({key for items in ranges for key, _ in items})


def test_a_seal_with_nothing_staged_is_refused() -> None:
    store = Store(MemoryTree())
    with pytest.raises(OutOfOrder):
        store.seal()
    stage(store, b"a")
    assert [one.number for one in store.seal()] == [1]
    assert [one.number for one in store.apply()] == [1]
    with pytest.raises(OutOfOrder):
        store.seal()
    assert (store.revision, durable(store)) == (1, [b"a"])


def test_a_seal_while_a_batch_is_flushing_is_refused_and_no_revision_is_lost() -> None:
    store = Store(MemoryTree())
    stage(store, b"a")
    store.seal()
    stage(store, b"b")
    with pytest.raises(OutOfOrder):
        store.seal()
    assert (store.flushing, store.pending) == (True, 2)
    assert (store.depends_on(b"a"), store.depends_on(b"b")) == (1, 2)
    assert [one.number for one in store.apply()] == [1]
    assert [one.number for one in store.seal()] == [2]
    assert [one.number for one in store.apply()] == [2]
    assert durable(store) == [b"a", b"b"]


def test_an_apply_with_nothing_flushing_is_refused_and_the_staged_revision_stays() -> None:
    store = Store(MemoryTree())
    stage(store, b"a")
    with pytest.raises(OutOfOrder):
        store.apply()
    assert (store.revision, store.pending, durable(store)) == (0, 1, [])
    store.seal()
    store.apply()
    with pytest.raises(OutOfOrder):
        store.apply()
    assert (store.revision, store.keys, durable(store)) == (1, 1, [b"a"])


def test_a_freeze_while_a_memtable_is_being_folded_is_refused_and_both_are_read() -> None:
    tree = HeldTree()
    store = Store(tree)
    for key in (b"a", b"b"):
        stage(store, key)
        store.seal()
        store.apply()
        if key == b"a":
            tree.fold(store.freeze(), store.revision, lambda _: None)
    with pytest.raises(OutOfOrder):
        store.freeze()
    assert durable(store) == [b"a", b"b"]
    assert (list(store.memtable), store.folding) == ([b"b"], True)
    tree.release()
    store.drop_frozen()
    assert store.folded == 1
    assert durable(store) == [b"a", b"b"]


def test_a_frozen_memtable_is_not_dropped_before_the_tree_has_it() -> None:
    tree = HeldTree()
    store = Store(tree)
    with pytest.raises(OutOfOrder):
        store.drop_frozen()
    stage(store, b"a")
    store.seal()
    store.apply()
    with pytest.raises(OutOfOrder):
        store.drop_frozen()
    tree.fold(store.freeze(), store.revision, lambda _: None)
    with pytest.raises(OutOfOrder):
        store.drop_frozen()
    assert (store.folding, store.folded, durable(store)) == (True, 0, [b"a"])
    tree.release()
    store.drop_frozen()
    assert (store.folding, store.folded, durable(store)) == (False, 1, [b"a"])
    with pytest.raises(OutOfOrder):
        store.drop_frozen()


# -- the time as of which readers see expiry --


def test_the_horizon_is_the_time_of_the_oldest_revision_that_is_not_durable() -> None:
    store = Store(MemoryTree())
    assert store.horizon == NEVER
    store.stage([(b"none", TOMBSTONE)], 1)
    assert store.horizon == NEVER
    stage(store, b"a", 2)
    stage(store, b"b", 3)
    store.seal()
    assert store.horizon == 2
    stage(store, b"c", 4)
    stage(store, b"d", 5)
    assert store.horizon == 2
    store.apply()
    assert store.horizon == 4
    store.seal()
    assert store.horizon == 4
    store.apply()
    assert store.horizon == NEVER


def test_a_fold_counts_what_it_has_folded_and_no_newer_revision() -> None:
    tree = MemoryTree()
    store = Store(tree)
    stage(store, b"a")
    store.seal()
    store.apply()
    items, folding = store.freeze(), store.revision
    stage(store, b"b")
    store.seal()
    store.apply()
    tree.fold(items, folding, lambda _: None)
    store.drop_frozen()
    assert (store.folded, store.revision) == (1, 2)
