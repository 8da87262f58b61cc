"""Conflict detection: the read set of a transaction, and an index of all read sets by key.

The rule: a read set holds each key and range once. Ranges that touch or overlap become one, so a scan
in pages is one range, however many pages it has, and a key is in at most one range of a read set.

A conflict, in order:

1. A write is staged. `Keyspace.stage` asks the index for the readers of each changed key.
2. The index forgets each reader, and the reader becomes conflicted: it drops its writes, and depends on
   the new revision.
3. Its next request gets `TransactionConflict`, once that revision is durable (P3). It stays conflicted.
4. A commit ends it with the same error; a rollback or the idle timeout ends it, too.

To forget a reader costs O(1), however much it has read. What it has read becomes garbage: queries skip
it, and it is taken out of the index in pieces.
"""

import heapq
from collections.abc import Collection
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

import msgspec
from sortedcontainers import SortedDict

from kvactor.core import intervals
from kvactor.core.intervals import Interval, later_end
from kvactor.core.records import NEVER, expiry_of
from kvactor.core.work import COALESCE, UNCHARGED, Work

#: What a key that was read takes beyond its own bytes, about, in bytes: a bytes object (34), a slot in
#: the dictionary of the index (40; 30 to 60), and one in the list of the read set (10).
READ_KEY_OVERHEAD: Final = 84
#: The same of a range: a node of the interval tree (72), and a place in the sorted dictionary of the
#: read set (50; 40 to 70).
READ_RANGE_OVERHEAD: Final = 122
#: The same of one of its bounds: a bytes object.
BOUND_OVERHEAD: Final = 34

#: Entries of garbage that are taken out for each read that is noted.
CLEANED_PER_READ: Final = 2

#: Dictionaries keep the memory of entries that are taken out. When so many ranges become one, and these
#: are the most, the rest gets a new dictionary.
MANY: Final = 100

#: The numbers of a key's readers: one, a few, or many.
Numbers = int | tuple[int, ...] | dict[int, None]
#: More are kept in a dictionary.
FEW: Final = 4


class Coalesced(msgspec.Struct, frozen=True):
    """A change of a read set: the ranges that start at `replaced` are parts of [start, end) now."""

    replaced: list[bytes]
    start: bytes
    end: bytes | None


class ReadSet:
    """The keys, present or missing, and the ranges that a transaction has read, and when the first
    record that it has read expires.

    A range is half-open, [start, end), and all keys in it count as read, present or missing. An `end`
    of None stands for the end of all keys.
    """

    __slots__ = ("keys", "ranges", "size", "valid_until")

    def __init__(self) -> None:
        #: each once: the index knows whether a key is among them
        self.keys: list[bytes] = []
        #: start to end; no two of them touch or overlap
        self.ranges: SortedDict[bytes, bytes | None] = SortedDict()
        #: when the first record that was read expires, milliseconds since the epoch
        self.valid_until = NEVER
        #: bytes of memory, here and in the index, about
        self.size = 0

    @property
    def entries(self) -> int:
        """How many keys and ranges it has."""
        return len(self.keys) + len(self.ranges)

    def add_key(self, key: bytes) -> None:
        """Add a key that it does not have. Costs O(1)."""
        self.keys.append(key)
        self.size += READ_KEY_OVERHEAD + len(key)

    def take_key(self) -> bytes:
        """Take out any key. Costs O(1)."""
        key = self.keys.pop()
        self.size -= READ_KEY_OVERHEAD + len(key)
        return key

    def take_range(self) -> bytes:
        """Take out the last range, and return its start. Costs O(log r) for r ranges."""
        start, end = self.ranges.popitem()
        self.size -= _size(start, end)
        return start

    def saw_range(self, start: bytes, end: bytes | None, work: Work = UNCHARGED) -> Coalesced | None:
        """Note that [start, end) was read. Return what this changes; None if nothing.

        Costs O((1 + m) log r) for m ranges that become one with it, out of r; `work` is charged for
        them. Raises `RequestTooExpensive`; then nothing has changed.
        """
        if end is not None and end <= start:
            return None
        before = next(self.ranges.irange(maximum=start, reverse=True), None)
        if before is not None:
            reach = self.ranges[before]
            if later_end(reach, end) == reach:
                return None
            if reach is None or reach >= start:
                start = before
        replaced = []
        for one in self.ranges.irange(start, end):
            work.charge(COALESCE)
            replaced.append(one)
        for one in replaced:
            reach = self.ranges.pop(one)
            self.size -= _size(one, reach)
            end = later_end(end, reach)
        self.ranges[start] = end
        self.size += _size(start, end)
        if len(replaced) > max(len(self.ranges), MANY):
            self.ranges = SortedDict(self.ranges)
        return Coalesced(replaced, start, end)

    def has_range_of(self, key: bytes) -> bool:
        """Is this key in a range that was read? Costs O(log r) for r ranges."""
        start = next(self.ranges.irange(maximum=key, reverse=True), None)
        if start is None:
            return False
        end = self.ranges[start]
        return end is None or key < end

    def saw_record(self, record: bytes) -> None:
        """Note that a record was read: the read set is valid until the first of its records expires."""
        self.valid_until = min(self.valid_until, expiry_of(record))


class Reader(Protocol):
    """Has a read set; a transaction does."""

    reads: ReadSet

    def grow(self, by: int) -> None:
        """Count bytes of memory; negative: they are given back."""


R = TypeVar("R", bound=Reader)


class ConflictIndex(Generic[R]):
    """Finds the transactions that have read a key, and so conflict with a write of it.

    It keeps the read sets of its readers: every read is noted through it. Costs do not depend on
    how many transactions are open. They depend on n, the number of ranges in all read sets, as its
    logarithm.

    The entries of readers that it has forgotten stay in it as garbage until `clean` takes them out.
    Each read that is noted takes out two, those of the smallest read sets first. So garbage never has
    more entries than the read sets of all open readers had together at their peak, and many small read
    sets do not pile up behind a large one.
    """

    def __init__(self) -> None:
        #: each reader by its number: they count up, in the order of the first reads. Other numbers are
        #: of readers that are forgotten.
        self._readers: dict[int, R] = {}
        self._numbers: dict[R, int] = {}
        self._next = count()
        self._by_key: dict[bytes, Numbers] = {}
        self._ranges: intervals.Tree = None
        #: a heap of what forgotten readers have read: entries, number, read set
        self._garbage: list[tuple[int, int, ReadSet]] = []
        #: bytes of memory that garbage takes, about
        self.garbage_size = 0

    def __bool__(self) -> bool:
        """Has any reader read anything?"""
        return bool(self._readers)

    # -- reads --

    def saw_key(self, reader: R, key: bytes) -> None:
        """Note that `reader` looked up `key`. Costs O(1), amortized."""
        number = self._number(reader)
        numbers = self._by_key.get(key)
        if numbers is None:
            self._by_key[key] = number
        elif numbers == number or (not isinstance(numbers, int) and number in numbers):
            return
        else:
            self._by_key[key] = self._with(numbers, number)
        before = reader.reads.size
        reader.reads.add_key(key)
        reader.grow(reader.reads.size - before)
        if self._garbage:
            self.clean(CLEANED_PER_READ)

    def saw_range(self, reader: R, start: bytes, end: bytes | None, work: Work = UNCHARGED) -> None:
        """Note that `reader` read all from `start` up to but not including `end` (None: to the end of
        all keys).

        Costs O((1 + m) log n) for m ranges of the reader that become one with it; `work` is charged for
        them. Raises `RequestTooExpensive`; then nothing has changed.
        """
        before = reader.reads.size
        change = reader.reads.saw_range(start, end, work)
        if change is None:
            return
        number = self._number(reader)
        gone = [(one, number) for one in change.replaced if one != change.start]
        kept = intervals.remove(self._ranges, gone)
        self._ranges = intervals.insert(kept, Interval(change.start, number, change.end))
        reader.grow(reader.reads.size - before)
        if self._garbage:
            self.clean(CLEANED_PER_READ)

    def saw_any(self, reader: R, keys: Collection[bytes]) -> bool:
        """Has `reader` read any of these keys, alone or in a range?

        Costs O(k) for k keys, and O(k log r) more if it has read r ranges.
        """
        number = self._numbers.get(reader)
        if number is None:
            return False
        if reader.reads.keys and any(number in _each(self._by_key.get(key, ())) for key in keys):
            return True
        return bool(reader.reads.ranges) and any(reader.reads.has_range_of(key) for key in keys)

    def readers_of(self, key: bytes) -> list[R]:
        """Return the transactions that have read `key`, alone or in a range: each once, in the order
        of their first reads.

        Costs O(p + (1 + h) log n): this is a stabbing query of an interval tree. h is how many ranges
        contain the key: one of each reader found, and of each forgotten one whose garbage has such a
        range. p is how many have read the key alone: at most twice as many as readers were ever open at
        a time, and a few.
        """
        numbers = {*intervals.stab(self._ranges, key), *_each(self._by_key.get(key, ()))}
        readers = self._readers
        return [readers[number] for number in sorted(numbers) if number in readers]

    # -- ends --

    def forget(self, reader: R) -> None:
        """Drop all reads of `reader`, and give it a new, empty read set.

        Costs O(log g) for g readers that are forgotten and not cleaned yet.
        """
        number = self._numbers.pop(reader, None)
        if number is None:
            return
        del self._readers[number]
        reads, reader.reads = reader.reads, ReadSet()
        reader.grow(-reads.size)
        self.garbage_size += reads.size
        heapq.heappush(self._garbage, (reads.entries, number, reads))

    def clean(self, limit: int) -> bool:
        """Take at most so many entries of garbage out, those of the smallest read sets first. Return
        whether there is more.

        Costs O(l log n) for a limit of l.
        """
        while limit > 0 and self._garbage:
            _, number, reads = self._garbage[0]
            before, entries = reads.size, reads.entries
            self._take_out(number, reads, limit)
            self.garbage_size -= before - reads.size
            limit -= entries - reads.entries
            if not reads.entries:
                heapq.heappop(self._garbage)
        if not self._by_key:
            self._by_key = {}  # an empty dictionary keeps the memory of its entries
        return bool(self._garbage)

    def _take_out(self, number: int, reads: ReadSet, limit: int) -> None:
        alone = min(limit, len(reads.keys))
        for _ in range(alone):
            key = reads.take_key()
            kept = _without(self._by_key.get(key), number)
            if kept is None:
                self._by_key.pop(key, None)
            else:
                self._by_key[key] = kept
        ranges = min(limit - alone, len(reads.ranges))
        places = [(reads.take_range(), number) for _ in range(ranges)]
        self._ranges = intervals.remove(self._ranges, places[::-1])

    def _with(self, numbers: Numbers, number: int) -> Numbers:
        """Add a number. Garbage among the others goes once it is the most: this takes a constant time
        for each number that was added.
        """
        if isinstance(numbers, int):
            return numbers, number
        if isinstance(numbers, tuple):
            if len(numbers) < FEW:
                return *numbers, number
            numbers = dict.fromkeys(numbers)
        if len(numbers) > 2 * len(self._readers) + FEW:
            numbers = {one: None for one in numbers if one in self._readers}
        numbers[number] = None
        return numbers

    def _number(self, reader: R) -> int:
        number = self._numbers.get(reader)
        if number is None:
            number = self._numbers[reader] = next(self._next)
            self._readers[number] = reader
        return number


def _each(numbers: Numbers) -> Collection[int]:
    return (numbers,) if isinstance(numbers, int) else numbers


def _without(numbers: Numbers | None, number: int) -> Numbers | None:
    """Take a number out, if it is there; None: no other is left."""
    if numbers is None or numbers == number:
        return None
    if isinstance(numbers, dict):
        numbers.pop(number, None)
        return numbers or None
    if isinstance(numbers, tuple):
        kept = tuple(one for one in numbers if one != number)
        return kept if len(kept) > 1 else kept[0] if kept else None
    return numbers


def _size(start: bytes, end: bytes | None) -> int:
    bounds = BOUND_OVERHEAD + len(start)
    return READ_RANGE_OVERHEAD + bounds + (0 if end is None else BOUND_OVERHEAD + len(end))
