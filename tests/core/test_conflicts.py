"""Conflict detection: a read set and the index of readers agree with plain lists of what was read, and
a write costs what it hits. Costs are counted in comparisons of keys.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from math import log2
from typing import Any, ClassVar, ParamSpec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvactor.core import intervals, records
from kvactor.core.conflicts import (
    BOUND_OVERHEAD,
    READ_KEY_OVERHEAD,
    READ_RANGE_OVERHEAD,
    ConflictIndex,
    ReadSet,
)
from kvactor.core.context import Context
from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import Commit, Drop, Message, Open
from kvactor.core.owner import CLEANED_PER_DRAIN
from kvactor.core.records import NEVER, TOMBSTONE, encode
from kvactor.core.work import COALESCE, CONFLICT, UNLIMITED, Work
from kvactor.errors import RequestTooExpensive
from tests.core.builders import get, put, scan
from tests.core.harness import OwnerHarness

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
        self.size = 0

    def grow(self, by: int) -> None:
        self.size += by

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
    bounds = [bound for span in spans for bound in span if bound is not None]
    return (
        sum(READ_KEY_OVERHEAD + len(key) for key in keys)
        + len(spans) * READ_RANGE_OVERHEAD
        + sum(BOUND_OVERHEAD + len(bound) for bound in bounds)
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
    index, reader = ConflictIndex[Person](), Person()
    for span in spans:
        index.saw_range(reader, *span)
    for key in keys:
        index.saw_key(reader, key)
    reads = reader.reads
    assert list(reads.ranges.items()) == coalesced(spans)
    assert sorted(reads.keys) == sorted(set(keys))
    assert reads.size == reader.size == size_of(set(keys), coalesced(spans))


@pytest.mark.parametrize("order", [1, -1])
def test_a_scan_in_pages_is_one_range_in_either_direction(order: int) -> None:
    pages = [(b"%04d" % page, b"%04d" % (page + 1)) for page in range(1000)]
    reads = scanned(*pages[::order])
    assert list(reads.ranges.items()) == [(b"0000", b"1000")]
    assert reads.size == size_of(set(), [(b"0000", b"1000")])


def test_a_range_that_was_read_before_changes_nothing() -> None:
    reads = scanned((b"a", b"c"), (b"e", None))
    for start, end in ((b"a", b"c"), (b"b", b"c"), (b"e", None), (b"f", b"g")):
        assert reads.saw_range(start, end) is None
    assert list(reads.ranges.items()) == [(b"a", b"c"), (b"e", None)]


def test_a_read_set_shrinks_when_a_range_takes_in_others() -> None:
    reads = scanned(*[(b"%04d" % one, b"%04d!" % one) for one in range(1000)])
    assert reads.size == 1000 * size_of(set(), [(b"0000", b"0000!")])
    reads.saw_range(b"", None)
    assert reads.size == size_of(set(), [(b"", None)])


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
        self.index.forget(person)
        assert (person.reads.entries, person.reads.size, person.size) == (0, 0, 0)

    @rule(limit=st.integers(1, 5))
    def clean(self, limit: int) -> None:
        before = self.index.garbage_size
        more = self.index.clean(limit)
        assert self.index.garbage_size < before or before == 0
        assert more is (self.index.garbage_size > 0)

    @rule()
    def clean_all(self) -> None:
        assert not self.index.clean(1 << 30)
        assert self.index.garbage_size == 0
        if not self.order:
            assert self.index._by_key == {}
            assert self.index._ranges is None

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
            assert sorted(person.reads.keys) == sorted(self.keys[person])
            assert person.reads.size == person.size == size_of(self.keys[person], spans)
            for key in SOME_KEYS:
                read = key in self.keys[person] or any(contains(span, key) for span in spans)
                assert self.index.saw_any(person, [key]) is read


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
def test_forgetting_a_reader_compares_no_keys_and_hides_its_reads_at_once(
    scans: list[Scan], missed: list[int]
) -> None:
    index, people, _ = index_of(scans)
    for person in people:
        start = next(iter(person.reads.ranges))
        assert person in index.readers_of(start)
        assert comparisons(index.forget, person) == 0
        assert person not in index.readers_of(start)
    assert not index


@SHAPES
def test_cleaning_a_piece_costs_a_logarithm_for_each_of_its_entries(
    scans: list[Scan], missed: list[int]
) -> None:
    index, people, _ = index_of(scans)
    for person in people:
        index.forget(person)
    dearest, pieces = 0, 0
    while index.garbage_size:
        dearest = max(dearest, comparisons(index.clean, 100))
        pieces += 1
    assert dearest <= 100 * 8 * HEIGHT
    assert pieces == COUNT // 100


# -- garbage --


def test_what_a_forgotten_reader_has_read_counts_as_garbage_until_it_is_cleaned() -> None:
    index, reader = ConflictIndex[Person](), Person()
    for number in range(100):
        index.saw_key(reader, b"%d" % number)
        index.saw_range(reader, b"%d" % number, b"%d\0" % number)
    size = reader.size
    index.forget(reader)
    assert (reader.size, index.garbage_size) == (0, size)
    pieces = 1
    while index.clean(10):
        pieces += 1
    assert (pieces, index.garbage_size) == (20, 0)


def test_garbage_never_exceeds_what_open_readers_had_at_their_peak() -> None:
    index = ConflictIndex[Person]()
    people = [Person(str(number)) for number in range(10)]
    for person in people:
        for number in range(100):
            index.saw_key(person, b"%d" % number)
    peak = sum(person.size for person in people)
    for person in people:
        index.forget(person)
    for life in range(500):
        for number in range(1 + life % 7):
            index.saw_key(people[0], b"%d" % number)
        index.forget(people[0])
        assert index.garbage_size <= peak
    assert index.garbage_size < peak // 10


def test_small_read_sets_do_not_pile_up_behind_a_large_one() -> None:
    index, large, small = ConflictIndex[Person](), Person(), Person()
    for number in range(10_000):
        index.saw_key(large, b"%d" % number)
    size = large.size
    index.forget(large)
    for _ in range(100):
        index.saw_key(small, b"hot")
        index.saw_range(small, b"ho", b"hou")
        index.forget(small)
        assert len(intervals.stab(index._ranges, b"hot")) <= 2
    assert index.garbage_size < size


def test_a_key_that_is_read_again_and_again_holds_little_garbage() -> None:
    index, others = ConflictIndex[Person](), [Person(str(number)) for number in range(10)]
    for person in others:
        for number in range(1000):
            index.saw_key(person, b"%d" % number)
    index.clean = lambda limit: True  # type: ignore[method-assign]
    for _ in range(1000):
        person = Person()
        index.saw_key(person, b"1")
        index.forget(person)
    numbers = index._by_key[b"1"]
    assert isinstance(numbers, dict)
    assert len(numbers) <= 2 * 11 + 5
    assert index.readers_of(b"1") == others


def test_a_range_that_takes_in_others_is_charged_for_each_or_refused_without_a_change() -> None:
    index, reader = ConflictIndex[Person](), Person()
    for number in range(100):
        index.saw_range(reader, b"%02d" % number, b"%02d!" % number)
    before, size = dict(reader.reads.ranges), reader.size
    with pytest.raises(RequestTooExpensive):
        index.saw_range(reader, b"", None, Work(99 * COALESCE))
    assert (dict(reader.reads.ranges), reader.size) == (before, size)
    assert index.readers_of(b"5") == []
    assert index.readers_of(b"55") == [reader]
    work = Work(100 * COALESCE)
    index.saw_range(reader, b"", None, work)
    assert work.spent == 100 * COALESCE
    assert index.readers_of(b"5") == [reader]


# -- the owner --


def reading(count: int, *transactions: str) -> OwnerHarness:
    """An owner with transactions that have read so many keys and so many ranges."""
    harness = OwnerHarness()
    for transaction in transactions:
        harness.ask(Open(transaction))
        for number in range(count):
            harness.ask(get(b"%d" % number, transaction))
            harness.ask(scan(b"r%d" % number, b"r%d\0" % number, transaction=transaction))
    return harness


def test_the_owner_cleans_one_piece_in_each_drain_and_goes_on_without_traffic() -> None:
    harness = reading(CLEANED_PER_DRAIN, "t", "u")
    index = harness.owner._conflicts
    harness.send(put(b"1"))
    drains = 1
    while index.garbage_size:
        harness.owner.drain(harness.now, [(harness.news.pop(0), None, UNCOUNTED)])
        drains += 1
    # Two transactions of twice as many entries.
    assert drains == 4
    harness.settle()
    assert not harness.news


@pytest.mark.parametrize("end", [Commit("t"), Drop("t"), put(b"1")], ids=["commit", "drop", "conflict"])
def test_a_transaction_that_has_ended_leaves_nothing_in_the_index(end: Message[Any]) -> None:
    harness = reading(100, "t")
    index = harness.owner._conflicts
    harness.ask(end)
    harness.settle()
    assert (bool(index), index.garbage_size, index._by_key, index._ranges) == (False, 0, {}, None)


def test_a_write_is_charged_for_each_transaction_that_conflicts() -> None:
    harness = reading(1, *map(str, range(10)))
    keyspace = harness.owner._keys
    context = Context(UNLIMITED, now=harness.now, lease=UNCOUNTED)
    keyspace.stage(context, [(b"other", TOMBSTONE), (b"unread", encode(b"", b"v", ""))])
    before = context.spent
    keyspace.stage(context, [(b"0", encode(b"", b"v", ""))])
    assert context.spent - before == 10 * CONFLICT
