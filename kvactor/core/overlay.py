"""Overlays. An overlay holds changes to the layer below it, and does not modify that layer.

Transactions, the store's stages, and views of the store are stacks of overlays, read from the top.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter

from sortedcontainers import SortedList

from kvactor.core.protocols import Tree
from kvactor.core.records import (
    ENTRY_OVERHEAD,
    MISSING,
    RECORD_OVERHEAD,
    TOMBSTONE,
    Entry,
    Missing,
)
from kvactor.core.work import SORT, STEP, UNCHARGED, Work

Items = Iterator[tuple[bytes, Entry]]


class Overlay(dict[bytes, Entry]):
    """Changes to the layer below, which it does not modify: key to record or TOMBSTONE.

    Keys are sorted when a range is read, and each only once.
    """

    def __init__(self) -> None:
        super().__init__()
        #: bytes, with overhead
        self.size = 0
        #: bytes of the largest entry that was ever put, with overhead
        self.largest = 0
        #: most overlays are never read in order
        self._order: SortedList[bytes] | None = None

    def put(self, key: bytes, entry: Entry) -> None:
        """Set the entry of `key`."""
        before = self.get(key)
        if before is not None:
            self.size -= _size(key, before)
        size = _size(key, entry)
        self.size += size
        self.largest = max(self.largest, size)
        self[key] = entry

    def merge(self, above: "Overlay") -> None:
        """Take over all entries of the overlay above this one."""
        for key in self.keys() & above.keys():
            self.size -= _size(key, self[key])
        self.update(above)
        self.size += above.size
        self.largest = max(self.largest, above.largest)

    def merge_below(self, below: "Overlay") -> None:
        """Take over the entries of the overlay below this one that it does not have itself."""
        for key, entry in below.items():
            if key not in self:
                self.put(key, entry)

    def range(self, start: bytes, end: bytes | None, reverse: bool, work: Work) -> Items:
        """Yield the entries from `start` up to but not including `end` in key order, tombstones too.

        Charges each step.
        """
        order = self.order(work)
        for key in order.irange(start, end, inclusive=(True, False), reverse=reverse):
            work.charge(STEP)
            yield key, self[key]

    def order(self, work: Work) -> SortedList[bytes]:
        """Sort the new keys now, so that the next range does not have to; return all, in order."""
        order = self._order
        if order is None:
            order = self._order = SortedList()
        # Keys are never taken away, and a dict has its newest last.
        new = len(self) - len(order)
        if new:
            work.charge(new // SORT)
            order.update(islice(reversed(self), new))
        return order


def _size(key: bytes, entry: Entry) -> int:
    record = 0 if entry is TOMBSTONE else RECORD_OVERHEAD + len(entry)
    return ENTRY_OVERHEAD + len(key) + record


def merge_ranges(sources: Iterable[Items], reverse: bool) -> Items:
    """Merge ranges of the same bounds, the topmost first: each key with its topmost entry."""
    last: bytes | None = None
    for key, entry in heapq.merge(*sources, key=itemgetter(0), reverse=reverse):
        if key != last:
            last = key
            yield key, entry


class Memtable(Overlay):
    """An overlay that knows which of its records expire first."""

    def __init__(self) -> None:
        super().__init__()
        #: a heap of (expiry, key)
        self.expiring: list[tuple[int, bytes]] = []
        #: bytes of all entries ever merged, overwritten ones too: about the growth of the journal
        self.grown = 0
        #: tombstones ever merged, overwritten ones too: what ranges step over in vain, at most
        self.tombstones = 0
        self._merged = 0

    def merge(self, above: Overlay) -> None:
        """Take over all entries of the overlay above this one, and sort them: readers use this one."""
        self.update(above)
        self.grown += above.size
        self.largest = max(self.largest, above.largest)
        self._merged += len(above)
        # The size is an estimate: an overwritten entry counts as an average one.
        self.size = self.grown * len(self) // self._merged
        self.order(UNCHARGED)


class View:
    """Layers over a tree, the topmost first, seen as one ordered map of key to record."""

    def __init__(self, layers: tuple[Overlay, ...], tree: Tree) -> None:
        self.layers = layers
        self._tree = tree

    def find(self, key: bytes, work: Work, value: bool = True) -> bytes | Missing:
        """Return the record of `key`, expired or not; without `value`, it may end before its value.

        Raises `RecordDamaged`.
        """
        for layer in self.layers:
            entry = layer.get(key, MISSING)
            if entry is not MISSING:
                return MISSING if entry is TOMBSTONE else entry
        return self._tree.get(key, work) if value else self._tree.head(key, work)

    def ranges(
        self, start: bytes, end: bytes | None, reverse: bool, values: bool, work: Work
    ) -> list[Items]:
        """Return the range of every layer and of the tree, the topmost first. Without `values`, records
        may end before the value.
        """
        return [layer.range(start, end, reverse, work) for layer in self.layers] + [
            self._tree.range(start, end, reverse, values, work)
        ]
