"""The size of a transaction is the truth: within a factor of 1.3 of what tracemalloc finds, whatever it
has read and written.
"""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Final

import pytest

from kvactor.core.conflicts import ConflictIndex
from kvactor.core.records import TOMBSTONE, draft
from kvactor.core.transaction import LEVEL_OVERHEAD, TRANSACTION_OVERHEAD, Kind, Transaction
from kvactor.core.work import UNCHARGED

#: The bound, in both directions.
FACTOR: Final = 1.3

#: Whose memory counts: not that of the tests' tools.
OWN: Final = [
    tracemalloc.Filter(True, pattern) for pattern in ("*/kvactor/*", "*/sortedcontainers/*", __file__)
]

Index = ConflictIndex[Transaction]
Shape = Callable[[Index], list[Transaction]]


def opened(count: int = 1) -> list[Transaction]:
    return [Transaction(Kind.ISOLATED, 0, 1000, f"{number:032}") for number in range(count)]


def key(number: int, size: int = 0) -> bytes:
    """A key of its own object, as each request brings one."""
    return (b"key%06d" % number).ljust(size, b"-")


def writes(count: int, value: int, size: int = 0, levels: int = 1, sort: bool = False) -> Shape:
    def build(_: Index) -> list[Transaction]:
        (one,) = opened()
        for level in range(levels):
            if level:
                one.begin()
            for number in range(level, count, levels):
                one.put(key(number, size), draft(b"v" * value, "text/plain", 1 << 40))
        if sort:
            for overlay in one.overlays:
                overlay.order(UNCHARGED)
        return [one]

    return build


def tombstones(_: Index) -> list[Transaction]:
    (one,) = opened()
    for number in range(10_000):
        one.put(key(number), TOMBSTONE)
    return [one]


def rewrites(_: Index) -> list[Transaction]:
    (one,) = opened()
    for number in range(5000):
        one.put(key(number), draft(b"v" * 1000, "text/plain", 1 << 40))
    for number in range(5000):
        one.put(key(number), TOMBSTONE if number % 2 else draft(b"v", "text/plain", 1 << 40))
    return [one]


def merged(first: int, second: int) -> Shape:
    def build(_: Index) -> list[Transaction]:
        (one,) = opened()
        for numbers in (range(first), range(second)):
            for number in numbers:
                one.put(key(3 * number), draft(b"v" * 50, "text/plain", 1 << 40))
            one.begin()
        one.commit()
        one.commit()
        return [one]

    return build


def reads(count: int, size: int = 0, readers: int = 1) -> Shape:
    def build(index: Index) -> list[Transaction]:
        several = opened(readers)
        for one in several:
            for number in range(count):
                index.saw_key(one, key(number, size))
        return several

    return build


def ranges(count: int, size: int = 0, readers: int = 1) -> Shape:
    def build(index: Index) -> list[Transaction]:
        several = opened(readers)
        for one in several:
            for number in range(count):
                index.saw_range(one, key(number, size), key(number, size) + b"\0")
        return several

    return build


def pages(index: Index) -> list[Transaction]:
    """Each takes so little that others' memory would be seen beside one alone."""
    several = opened(30)
    for one in several:
        for number in range(300):
            index.saw_range(one, key(number), key(number + 1))
    return several


def swallowed(index: Index) -> list[Transaction]:
    several = ranges(3000)(index)
    index.saw_range(several[0], key(1500), None)
    return several


def forgotten(index: Index) -> list[Transaction]:
    several = reads(5000)(index)
    index.forget(several[0])
    return several


def cleaned(index: Index) -> list[Transaction]:
    several = [*reads(5000)(index), *ranges(5000)(index)]
    for one in several:
        index.forget(one)
    index.clean(1 << 30)
    return several


SHAPES: dict[str, Shape] = {
    "100 empty transactions": lambda _: opened(100),
    "one write in each": lambda index: [one for _ in range(100) for one in writes(1, 10)(index)],
    "32 levels": writes(32, 10, levels=32),
    "many tiny writes": writes(10_000, 1),
    "just before the dictionary grows": writes(10_922, 1),
    "just after the dictionary has grown": writes(10_923, 1),
    "many tiny writes, sorted": writes(10_000, 1, sort=True),
    "32 levels of tiny writes": writes(10_000, 1, levels=32),
    "values of 100 bytes": writes(10_000, 100),
    "values of 1 MiB": writes(10, 1 << 20),
    "long keys": writes(3000, 10, 511),
    "tombstones": tombstones,
    "written twice": rewrites,
    "a large level on a small one": merged(100, 5000),
    "a small level on a large one": merged(5000, 100),
    "many reads": reads(10_000),
    "as many as before the dictionary grows": reads(10_922),
    "as many as after the dictionary has grown": reads(10_923),
    "reads of long keys": reads(3000, 511),
    **{f"{readers} readers of the same keys": reads(1500, 0, readers) for readers in (2, 3, 5, 8, 30)},
    "readers of the same long keys": reads(500, 511, 5),
    "disjoint ranges": ranges(5000),
    "disjoint ranges between long keys": ranges(2000, 510),
    "the same ranges of 5 readers": ranges(1000, 0, 5),
    "a scan in pages": pages,
    "a range that takes in others": swallowed,
    "garbage": forgotten,
    "no garbage any more": cleaned,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_size_of_a_transaction_is_what_it_takes(shape: Shape) -> None:
    index = Index()
    gc.collect()
    tracemalloc.start()
    try:
        several = shape(index)
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces(OWN)
    finally:
        tracemalloc.stop()
    truth = sum(trace.size for trace in taken.traces)
    size = sum(one.size for one in several) + index.garbage_size
    assert truth / FACTOR <= size <= truth * FACTOR, f"{size} of {truth}: {size / truth:.2f}"


def test_what_is_dropped_is_given_back() -> None:
    (one,) = opened()
    empty = one.size
    for drop in (one.rollback, one.abandon):
        one.begin()
        one.put(b"a", draft(b"v" * 100, "text/plain", 1 << 40))
        assert one.size > empty + 100
        drop()
        assert one.size == empty
    one.put(b"a", TOMBSTONE)
    one.begin()
    one.put(b"a", draft(b"v" * 100, "text/plain", 1 << 40))
    one.conflict(1)
    assert one.size == empty + LEVEL_OVERHEAD
    one.rollback_all()
    assert one.size == TRANSACTION_OVERHEAD


@pytest.mark.parametrize(("first", "second"), [(1, 5), (5, 1), (3, 3)])
def test_a_level_that_is_merged_counts_each_key_once(first: int, second: int) -> None:
    (merged,), (plain,) = opened(), opened()
    for number in range(first):
        merged.put(b"%d" % number, b"v" * 100)
    merged.begin()
    for number in range(second):
        merged.put(b"%d" % number, TOMBSTONE)
    merged.commit()
    for number in range(max(first, second)):
        plain.put(b"%d" % number, TOMBSTONE if number < second else b"v" * 100)
    assert dict(merged.overlays[0]) == dict(plain.overlays[0])
    assert (merged.size, merged.overlays[0].size) == (plain.size, plain.overlays[0].size)
    keys = [key for key, _ in merged.overlays[0].range(b"", None, False, UNCHARGED)]
    assert keys == sorted(plain.overlays[0])
