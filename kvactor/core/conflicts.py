"""Conflict detection: the read set of a transaction, and an index of all read sets by key.

The rule: a read set holds each key and range once. Ranges that touch or overlap become one, so a scan
in pages is one range, however many pages it has, and a key is in at most one range of a read set.

A conflict, in order:

1. A write is staged. `Keyspace.stage` asks the index for the readers of each changed key.
2. The index forgets each reader, and the reader becomes conflicted: it drops its writes, and depends on
   the new revision.
3. Its next request gets `TransactionConflict`, once that revision is durable (P3). It stays conflicted.
4. A commit ends it with the same error; a rollback or the idle timeout ends it, too.
"""

from collections.abc import Collection
from itertools import count
from typing import Generic, Protocol, TypeVar

import msgspec
from sortedcontainers import SortedDict

from kvactor.core import intervals
from kvactor.core.intervals import Interval, later_end
from kvactor.core.records import ENTRY_OVERHEAD, NEVER, expiry_of


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

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        #: start to end; no two of them touch or overlap
        self.ranges: SortedDict[bytes, bytes | None] = SortedDict()
        #: when the first record that was read expires, milliseconds since the epoch
        self.valid_until = NEVER
        #: bytes of all keys and bounds, and ENTRY_OVERHEAD for each key and each range
        self.size = 0

    def saw_key(self, key: bytes) -> None:
        """Note that `key` was looked up. Costs O(1)."""
        if key not in self.keys:
            self.keys.add(key)
            self.size += ENTRY_OVERHEAD + len(key)

    def saw_range(self, start: bytes, end: bytes | None) -> Coalesced | None:
        """Note that [start, end) was read. Return what this changes; None if nothing.

        Costs O((1 + m) log r) for m ranges that become one with it, out of r. Each of the m came with
        a read of its own, and goes for good.
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
        replaced = list(self.ranges.irange(start, end))
        for one in replaced:
            reach = self.ranges.pop(one)
            self.size -= _size(one, reach)
            end = later_end(end, reach)
        self.ranges[start] = end
        self.size += _size(start, end)
        return Coalesced(replaced, start, end)

    def saw_any(self, keys: Collection[bytes]) -> bool:
        """Is any of these keys in the read set, alone or in a range?"""
        if any(key in self.keys for key in keys):
            return True
        return bool(self.ranges) and any(self._in_range(key) for key in keys)

    def _in_range(self, key: bytes) -> bool:
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


R = TypeVar("R", bound=Reader)


class ConflictIndex(Generic[R]):
    """Finds the transactions that have read a key, and so conflict with a write of it.

    It keeps the read sets of its readers: every read is noted through it. Costs do not depend on
    how many transactions are open. They depend on n, the number of ranges in all read sets, as its
    logarithm.
    """

    def __init__(self) -> None:
        #: each reader by its number: they count up, in the order of the first reads
        self._readers: dict[int, R] = {}
        self._numbers: dict[R, int] = {}
        self._next = count()
        self._by_key: dict[bytes, set[int]] = {}
        self._ranges: intervals.Tree = None

    def __bool__(self) -> bool:
        """Has any reader read anything?"""
        return bool(self._readers)

    def saw_key(self, reader: R, key: bytes) -> None:
        """Note that `reader` looked up `key`. Costs O(1)."""
        reader.reads.saw_key(key)
        self._by_key.setdefault(key, set()).add(self._number(reader))

    def saw_range(self, reader: R, start: bytes, end: bytes | None) -> None:
        """Note that `reader` read all from `start` up to but not including `end` (None: to the end of
        all keys).

        Costs O((1 + m) log n) for m ranges of the reader that become one with it. Each of the m came
        with a read of its own, and goes for good.
        """
        change = reader.reads.saw_range(start, end)
        if change is None:
            return
        number = self._number(reader)
        gone = [(one, number) for one in change.replaced if one != change.start]
        kept = intervals.remove(self._ranges, gone)
        self._ranges = intervals.insert(kept, Interval(change.start, number, change.end))

    def readers_of(self, key: bytes) -> list[R]:
        """Return the transactions that have read `key`, alone or in a range: each once, in the order
        of their first reads.

        Costs O((1 + h) log n) for h readers found: this is a stabbing query of an interval tree.
        """
        numbers = {*intervals.stab(self._ranges, key), *self._by_key.get(key, ())}
        return [self._readers[number] for number in sorted(numbers)]

    def forget(self, reader: R) -> None:
        """Drop all reads of `reader`, and give it a new, empty read set.

        Costs O(k + r log(n/r + 1)) for k keys and r ranges in its read set, and O(1) if it is empty.
        """
        reads, reader.reads = reader.reads, ReadSet()
        number = self._numbers.pop(reader, None)
        if number is None:
            return
        del self._readers[number]
        for key in reads.keys:
            numbers = self._by_key[key]
            numbers.remove(number)
            if not numbers:
                del self._by_key[key]
        self._ranges = intervals.remove(self._ranges, [(start, number) for start in reads.ranges])

    def _number(self, reader: R) -> int:
        number = self._numbers.get(reader)
        if number is None:
            number = self._numbers[reader] = next(self._next)
            self._readers[number] = reader
        return number


def _size(start: bytes, end: bytes | None) -> int:
    return ENTRY_OVERHEAD + len(start) + len(end or b"")
