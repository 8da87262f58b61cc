"""Conflict detection: a read set and the index of readers agree with plain lists of what was read, and
a write costs what it hits. Costs are counted in comparisons of keys.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from math import log2
from typing import ClassVar, ParamSpec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvactor.core import records
from kvactor.core.conflicts import ConflictIndex, ReadSet
from kvactor.core.records import ENTRY_OVERHEAD, NEVER

P = ParamSpec("P")

#: A half-open range [start, end), not empty; None: to the end of all keys.
Span = tuple[bytes, bytes | None]

#: So few keys that bounds meet.
SOME_KEYS = (b"", b"a", b"a\0", b"b", b"c", b"d", b"e", b"f")
KEYS = st.sampled_from(SOME_KEYS)
SPANS = st.tuples(KEYS, st.none() | KEYS)


class Person:
    """A reader; its hash changes from run to run."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.reads = ReadSet()

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return self.name


def contains(span: Span, key: bytes) -> bool:
    start, end = span
    return start <= key and (end is None or key < end)


def coalesced(spans: list[Span]) -> list[Span]:
    """The same keys in as few ranges as can be, computed anew from the sorted list."""
    done: list[Span] = []
    for start, end in sorted(spans, key=lambda span: span[0]):
        if end is not None and end <= start:
            continue
        if done and (done[-1][1] is None or done[-1][1] >= start):
            before, reach = done[-1]
            done[-1] = (before, None if reach is None or end is None else max(reach, end))
        else:
            done.append((start, end))
    return done


def size_of(keys: set[bytes], spans: list[Span]) -> int:
    return sum(ENTRY_OVERHEAD + len(key) for key in keys) + sum(
        ENTRY_OVERHEAD + len(start) + len(end or b"") for start, end in spans
    )


def scanned(*spans: Span) -> ReadSet:
    reads = ReadSet()
    for start, end in spans:
        reads.saw_range(start, end)
    return reads


# -- read sets --


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(b"a", b"b"), (b"b", b"c")], [(b"a", b"c")]),
        ([(b"b", b"c"), (b"a", b"b")], [(b"a", b"c")]),
        ([(b"a", b"c"), (b"b", b"d")], [(b"a", b"d")]),
        ([(b"a", b"d"), (b"b", b"c")], [(b"a", b"d")]),
        ([(b"b", b"c"), (b"a", b"d")], [(b"a", b"d")]),
        ([(b"a", b"b"), (b"c", b"d"), (b"b", b"c")], [(b"a", b"d")]),
        ([(b"a", b"b"), (b"b\0", b"c")], [(b"a", b"b"), (b"b\0", b"c")]),
        ([(b"a", b"b"), (b"b", None)], [(b"a", None)]),
        ([(b"b", None), (b"a", b"b")], [(b"a", None)]),
        ([(b"b", None), (b"a", None)], [(b"a", None)]),
        ([(b"a", None), (b"b", b"c")], [(b"a", None)]),
        ([(b"a", b"b"), (b"c", b"d"), (b"", None)], [(b"", None)]),
        ([(b"b", b"b"), (b"c", b"a")], []),
    ],
)
def test_ranges_that_touch_or_overlap_become_one(spans: list[Span], expected: list[Span]) -> None:
    reads = scanned(*spans)
    assert list(reads.ranges.items()) == expected == coalesced(spans)
    assert reads.size == size_of(set(), expected)


@given(st.lists(SPANS, max_size=30), st.lists(KEYS))
def test_a_read_set_holds_and_accounts_for_the_coalesced_ranges_and_each_key_once(
    spans: list[Span], keys: list[bytes]
) -> None:
    reads = scanned(*spans)
    for key in keys:
        reads.saw_key(key)
    assert list(reads.ranges.items()) == coalesced(spans)
    assert reads.keys == set(keys)
    assert reads.size == size_of(set(keys), coalesced(spans))


@pytest.mark.parametrize("order", [1, -1])
def test_a_scan_in_pages_is_one_range_in_either_direction(order: int) -> None:
    pages = [(b"%04d" % page, b"%04d" % (page + 1)) for page in range(1000)]
    reads = scanned(*pages[::order])
    assert list(reads.ranges.items()) == [(b"0000", b"1000")]
    assert reads.size == ENTRY_OVERHEAD + 8


def test_a_range_that_was_read_before_changes_nothing() -> None:
    reads = scanned((b"a", b"c"), (b"e", None))
    for start, end in ((b"a", b"c"), (b"b", b"c"), (b"e", None), (b"f", b"g")):
        assert reads.saw_range(start, end) is None
    assert list(reads.ranges.items()) == [(b"a", b"c"), (b"e", None)]


def test_a_read_set_shrinks_when_a_range_takes_in_others() -> None:
    reads = scanned(*[(b"%04d" % one, b"%04d!" % one) for one in range(1000)])
    assert reads.size == 1000 * (ENTRY_OVERHEAD + 9)
    reads.saw_range(b"", None)
    assert reads.size == ENTRY_OVERHEAD


def test_a_read_set_is_valid_until_the_first_record_in_it_expires() -> None:
    reads = ReadSet()
    assert reads.valid_until == NEVER
    for expires_at in (NEVER, 20, 10, 30):
        reads.saw_record(records.draft(b"v", "text/plain", expires_at))
    assert reads.valid_until == 10


# -- the index --


class Conflicts(RuleBasedStateMachine):
    """The index, next to a list of all that each reader has read."""

    @initialize(count=st.integers(1, 5))
    def start(self, count: int) -> None:
        self.index = ConflictIndex[Person]()
        self.people = [Person(str(number)) for number in range(count)]
        self.keys: dict[Person, set[bytes]] = {}
        self.spans: dict[Person, list[Span]] = {}
        #: in the order of their first reads
        self.order: list[Person] = []

    def reads(self, person: Person) -> None:
        if person not in self.order:
            self.order.append(person)
            self.keys[person], self.spans[person] = set(), []

    @rule(data=st.data(), key=KEYS)
    def saw_key(self, data: st.DataObject, key: bytes) -> None:
        person = data.draw(st.sampled_from(self.people))
        self.reads(person)
        self.keys[person].add(key)
        self.index.saw_key(person, key)

    @rule(data=st.data(), span=SPANS)
    def saw_range(self, data: st.DataObject, span: Span) -> None:
        person = data.draw(st.sampled_from(self.people))
        if coalesced([span]):
            self.reads(person)
            self.spans[person].append(span)
        self.index.saw_range(person, *span)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        person = data.draw(st.sampled_from(self.people))
        if person in self.order:
            self.order.remove(person)
        before = person.reads
        self.index.forget(person)
        assert person.reads is not before
        assert (person.reads.keys, len(person.reads.ranges), person.reads.size) == (set(), 0, 0)

    @invariant()
    def the_readers_of_each_key_are_found_in_the_order_of_their_first_reads(self) -> None:
        for key in SOME_KEYS:
            assert self.index.readers_of(key) == [
                person
                for person in self.order
                if key in self.keys[person] or any(contains(span, key) for span in self.spans[person])
            ]

    @invariant()
    def read_sets_are_what_was_read(self) -> None:
        assert bool(self.index) == bool(self.order)
        for person in self.order:
            spans = coalesced(self.spans[person])
            assert list(person.reads.ranges.items()) == spans
            assert person.reads.keys == self.keys[person]
            assert person.reads.size == size_of(self.keys[person], spans)


TestConflicts = Conflicts.TestCase


def test_a_range_contains_its_start_and_not_its_end() -> None:
    index, reader = ConflictIndex[Person](), Person()
    index.saw_range(reader, b"b", b"d")
    found = [key for key in (b"a", b"b", b"c", b"d", b"e") if index.readers_of(key)]
    assert found == [b"b", b"c"]


def test_a_range_without_end_contains_every_later_key() -> None:
    index, reader = ConflictIndex[Person](), Person()
    index.saw_range(reader, b"b", None)
    found = [key for key in (b"a", b"b", b"\xff" * 600) if index.readers_of(key)]
    assert found == [b"b", b"\xff" * 600]


def test_a_reader_that_has_read_a_key_in_several_ways_is_found_once() -> None:
    index, reader = ConflictIndex[Person](), Person()
    index.saw_key(reader, b"b")
    index.saw_range(reader, b"a", b"c")
    index.saw_range(reader, b"b", None)
    assert index.readers_of(b"b") == [reader]


def test_a_range_that_is_empty_is_not_a_read() -> None:
    index, reader = ConflictIndex[Person](), Person()
    index.saw_range(reader, b"b", b"b")
    index.saw_range(reader, b"b", b"a")
    assert not index
    assert reader.reads.size == 0


def test_a_reader_that_is_forgotten_and_reads_again_comes_last() -> None:
    index, first, second = ConflictIndex[Person](), Person("1"), Person("2")
    for reader in (first, second):
        index.saw_key(reader, b"k")
    assert index.readers_of(b"k") == [first, second]
    index.forget(first)
    assert index.readers_of(b"k") == [second]
    index.saw_range(first, b"", None)
    assert index.readers_of(b"k") == [second, first]


def test_a_reader_that_has_read_nothing_may_be_forgotten() -> None:
    index, reader = ConflictIndex[Person](), Person()
    index.forget(reader)
    assert not index


#: Prints in which order readers are found: every seventh of 50 has read k.
ORDER = """
from kvactor.core.conflicts import ConflictIndex
from tests.core.test_conflicts import Person

index = ConflictIndex()
for number in range(50):
    person = Person(str(number))
    index.saw_key(person, b"other")
    if number % 7 == 0:
        index.saw_range(person, b"%02d" % (50 - number), None)
    if number % 14 == 0:
        index.saw_key(person, b"k")
print(index.readers_of(b"k"))
"""


def test_the_order_of_readers_is_that_of_their_first_reads_whatever_the_hashes() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", ORDER],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in range(3)
    }
    assert found == {"[0, 7, 14, 21, 28, 35, 42, 49]"}


# -- costs --


class Counted(bytes):
    """A key that counts how often it is compared."""

    compared: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return bytes.__eq__(self, other)

    def __lt__(self, other: bytes) -> bool:
        Counted.compared += 1
        return bytes.__lt__(self, other)

    def __le__(self, other: bytes) -> bool:
        Counted.compared += 1
        return bytes.__le__(self, other)

    def __gt__(self, other: bytes) -> bool:
        Counted.compared += 1
        return bytes.__gt__(self, other)

    def __ge__(self, other: bytes) -> bool:
        Counted.compared += 1
        return bytes.__ge__(self, other)

    __hash__ = bytes.__hash__


def comparisons(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> int:
    before = Counted.compared
    work(*args, **kwargs)
    return Counted.compared - before


def counted(number: int) -> Counted:
    return Counted(b"%05d" % number)


#: The number of a reader, and a range that it reads.
Scan = tuple[int, Counted, Counted | None]

COUNT = 5000
#: The height of an AVL tree of as many nodes.
HEIGHT = 1.44 * log2(COUNT + 2)

#: Of ten readers, with gaps between the ranges at the odd numbers.
DISJOINT: list[Scan] = [(n % 10, counted(2 * n), counted(2 * n + 1)) for n in range(COUNT)]
#: Each within the one before.
NESTED: list[Scan] = [(n, counted(40_000 + n), counted(60_000 - n)) for n in range(COUNT)]
#: Each overlaps with the thousand before it.
STAIRS: list[Scan] = [(n, counted(40_000 + n), counted(41_000 + n)) for n in range(COUNT)]
UNBOUNDED: list[Scan] = [(n, counted(40_000 + n), None) for n in range(COUNT)]

SHAPES = pytest.mark.parametrize(
    ("scans", "missed"),
    [
        pytest.param(DISJOINT, [1, 2501, 5001, 9999], id="disjoint"),
        pytest.param(NESTED, [39_999, 60_000], id="nested"),
        pytest.param(STAIRS, [39_999, 45_999], id="stairs"),
        pytest.param(UNBOUNDED, [0, 39_999], id="unbounded"),
    ],
)


def index_of(scans: list[Scan]) -> tuple[ConflictIndex[Person], list[Person], int]:
    """An index of these scans; its readers; and how many comparisons the dearest scan took."""
    index = ConflictIndex[Person]()
    people = [Person(str(number)) for number in range(1 + max(number for number, _, _ in scans))]
    dearest = 0
    for number, start, end in scans:
        dearest = max(dearest, comparisons(index.saw_range, people[number], start, end))
    return index, people, dearest


@SHAPES
@pytest.mark.parametrize("order", [1, -1])
def test_ranges_that_do_not_contain_a_key_cost_a_logarithm_when_it_is_written(
    scans: list[Scan], missed: list[int], order: int
) -> None:
    index, _, _ = index_of(scans[::order])
    for number in missed:
        key = counted(number)
        assert index.readers_of(key) == []
        # At each node on the path: is the key within its reach, behind its start, before its end, and
        # within the reach of what is to the left?
        assert comparisons(index.readers_of, key) <= 4 * HEIGHT


@pytest.mark.parametrize("scans", [NESTED, STAIRS, UNBOUNDED], ids=["nested", "stairs", "unbounded"])
def test_a_key_that_many_ranges_contain_costs_a_logarithm_for_each_of_them(scans: list[Scan]) -> None:
    index, people, _ = index_of(scans)
    for hits in (1, 10, 100):
        key = counted(40_000 + hits - 1)
        assert index.readers_of(key) == people[:hits]
        assert comparisons(index.readers_of, key) <= 4 * HEIGHT * (1 + hits)


def test_a_range_around_all_others_costs_a_logarithm_when_a_key_is_written() -> None:
    index, people, _ = index_of([*DISJOINT, (10, counted(0), None)])
    for number in (1, 5001, 9999):
        key = counted(number)
        assert index.readers_of(key) == people[10:]
        assert comparisons(index.readers_of, key) <= 8 * HEIGHT


@SHAPES
@pytest.mark.parametrize("order", [1, -1])
def test_a_scan_costs_a_logarithm_among_thousands_of_ranges(
    scans: list[Scan], missed: list[int], order: int
) -> None:
    _, _, dearest = index_of(scans[::order])
    assert dearest <= 8 * HEIGHT


def test_a_scan_of_everything_costs_a_logarithm_for_each_range_that_it_replaces() -> None:
    index, people, _ = index_of(DISJOINT)
    cost = comparisons(index.saw_range, people[0], counted(0), None)
    assert cost <= 4 * HEIGHT * (1 + COUNT // 10)
    assert comparisons(index.saw_range, people[0], counted(5), None) <= 4 * HEIGHT


@SHAPES
def test_forgetting_a_reader_costs_a_logarithm_for_each_of_its_ranges(
    scans: list[Scan], missed: list[int]
) -> None:
    index, people, _ = index_of(scans)
    for person in people[::37]:
        count = len(person.reads.ranges)
        assert comparisons(index.forget, person) <= 6 * HEIGHT * count


def test_forgetting_the_only_reader_costs_a_constant_for_each_of_its_ranges() -> None:
    index, people, _ = index_of([(0, start, end) for _, start, end in DISJOINT])
    assert comparisons(index.forget, people[0]) <= 4 * COUNT
    assert not index
