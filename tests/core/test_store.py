"""The way down through the store, step by step, where the owner's tests do not reach."""

from kvactor.core.records import TOMBSTONE, encode
from kvactor.core.store import Store
from kvactor.storage.memory import MemoryTree


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


def test_a_key_that_is_staged_to_go_is_not_swept_again() -> None:
    store = stored(1)
    assert store.stage([(b"0", TOMBSTONE), (b"none", TOMBSTONE)], 5) == [(b"0", None)]
    assert store.expired(5, 9) == ([], False)
    assert (store.pending, store.keys) == (1, 1)


def test_what_is_staged_flushing_and_durable_is_told_apart() -> None:
    store = Store(MemoryTree())
    store.stage([(b"a", encode(b"a", b"v", ""))], 0)
    assert (store.depends_on(b"a"), store.depends_on(b"b"), store.depends_on_range(b"a", None)) == (
        1,
        0,
        1,
    )
    store.seal()
    store.stage([(b"b", encode(b"b", b"v", ""))], 0)
    assert (store.depends_on(b"a"), store.depends_on(b"b")) == (1, 2)
    assert (store.depends_on_range(b"a", b"b"), store.depends_on_range(b"a", b"c")) == (1, 2)
    assert store.depends_on_range(b"c", None) == 0
    assert [revision.number for revision in store.apply()] == [1]
    assert (store.depends_on(b"a"), store.flushing, store.pending) == (0, False, 1)
