"""Overlays: changes laid over something that they do not touch.

The rule: an overlay never changes what is below it. Transactions, the store's stages, and ranges over
all of them are stacks of overlays, read from the top.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter

from sortedcontainers import SortedList

from kvactor.core.records import ENTRY_OVERHEAD, TOMBSTONE, Entry

Items = Iterator[tuple[bytes, Entry]]


class Overlay(dict[bytes, Entry]):
    """Changes laid over something that they do not touch: key to record or TOMBSTONE.

    Keys are put in order when somebody asks for a range, and each only once.
    """

    def __init__(self) -> None:
        super().__init__()
        #: bytes, with overhead
        self.size = 0
        self._order: SortedList[bytes] = SortedList()

    def put(self, key: bytes, entry: Entry) -> None:
        """Lay `entry` over whatever is below."""
        before = self.get(key)
        if before is None:
            self.size += ENTRY_OVERHEAD + len(key)
        elif before is not TOMBSTONE:
            self.size -= len(before)
        if entry is not TOMBSTONE:
            self.size += len(entry)
        self[key] = entry

    def merge(self, above: "Overlay") -> None:
        """Take over all that an overlay above this one says."""
        for key, entry in above.items():
            self.put(key, entry)

    def range(self, start: bytes, end: bytes | None, reverse: bool) -> Items:
        """Yield the entries from `start` up to but not including `end` in key order, tombstones too."""
        self.order()
        for key in self._order.irange(start, end, inclusive=(True, False), reverse=reverse):
            yield key, self[key]

    def order(self) -> None:
        """Put the keys in order, lest a reader has to wait for it."""
        # Keys are never taken away, and a dict has its newest last.
        new = len(self) - len(self._order)
        if new:
            self._order.update(islice(reversed(self), new))


def merge_ranges(sources: Iterable[Items], reverse: bool) -> Items:
    """Merge ranges of the same bounds, the topmost first: of each key, what the topmost says."""
    last: bytes | None = None
    for key, entry in heapq.merge(*sources, key=itemgetter(0), reverse=reverse):
        if key != last:
            last = key
            yield key, entry
