"""Transactions: a stack of overlays, and the record of who has read what. Pure and synchronous.

The rule: an overlay never changes what is below it. `begin` pushes one, `rollback` forgets one,
`commit` merges one into the overlay below. A read looks down the stack, then into the store. An
isolated transaction's reads are recorded, ranges too, and whoever writes something that it has read
dooms it at once: so a live transaction has never seen two states mixed.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter

from sortedcontainers import SortedList

from kvactor.core.records import MISSING, NEVER, TOMBSTONE, Entry, Missing, expiry_of

#: What an entry costs in memory beyond its key and value, about; counted so that a million tiny
#: entries are not free.
ENTRY_OVERHEAD = 128

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


class ReadSet:
    """What a transaction has seen: keys, present or missing, and ranges; and until when that stays
    true by itself.
    """

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.ranges: set[tuple[bytes, bytes | None]] = set()
        #: when the first record that was seen expires, milliseconds since the epoch
        self.valid_until = NEVER
        #: bytes, with overhead
        self.size = 0

    def saw_key(self, key: bytes) -> None:
        """Note that `key` was looked up."""
        if key not in self.keys:
            self.keys.add(key)
            self.size += ENTRY_OVERHEAD + len(key)

    def saw_range(self, start: bytes, end: bytes | None) -> None:
        """Note that all from `start` up to but not including `end` was seen, and that there is
        nothing else.
        """
        if (start, end) not in self.ranges:
            self.ranges.add((start, end))
            self.size += ENTRY_OVERHEAD + len(start) + len(end or b"")

    def saw_record(self, record: bytes) -> None:
        """Note that a record was seen: what was read holds no longer than it does."""
        self.valid_until = min(self.valid_until, expiry_of(record))

    def spans(self, key: bytes) -> bool:
        """Is `key` in a range that was seen?"""
        return any(start <= key and (end is None or key < end) for start, end in self.ranges)


class Transaction:
    """A stack of overlays with an idle time limit.

    An isolated one has an id and a read set; the shared one has neither.
    """

    __slots__ = (
        "conflicted",
        "depends_on",
        "id",
        "idle_timeout",
        "last_used",
        "opened_at",
        "overlays",
        "reads",
        "warned",
    )

    def __init__(self, id_: str | None, now: int, idle_timeout: int) -> None:
        self.id = id_
        self.opened_at = self.last_used = now
        #: milliseconds; NEVER for no limit
        self.idle_timeout = idle_timeout
        self.overlays = [Overlay()]
        self.reads = ReadSet()
        self.conflicted = False
        #: the highest revision, perhaps only staged, on which anything rests that this transaction
        #: was told
        self.depends_on = 0
        self.warned = False

    @property
    def depth(self) -> int:
        """How many begins are open; 0: it is over."""
        return len(self.overlays)

    @property
    def size(self) -> int:
        """Bytes held by writes and reads, with overhead."""
        size = self.reads.size
        for overlay in self.overlays:
            size += overlay.size
        return size

    @property
    def expires_at(self) -> int:
        """When it will have been idle for too long, in milliseconds since the epoch."""
        return min(self.last_used + self.idle_timeout, NEVER)

    def get(self, key: bytes) -> Entry | Missing:
        """Return what the topmost overlay that knows `key` says, or MISSING if the store has to be
        asked.
        """
        for overlay in reversed(self.overlays):
            entry = overlay.get(key, MISSING)
            if entry is not MISSING:
                return entry
        return MISSING

    def ranges(self, start: bytes, end: bytes | None, reverse: bool) -> list[Items]:
        """Return the range of every overlay, the topmost first."""
        return [overlay.range(start, end, reverse) for overlay in reversed(self.overlays)]

    def put(self, key: bytes, entry: Entry) -> None:
        """Write a draft or a TOMBSTONE."""
        self.overlays[-1].put(key, entry)

    def begin(self) -> None:
        """Go one level deeper."""
        self.overlays.append(Overlay())

    def rollback(self) -> None:
        """Forget the topmost level; what was read stays read."""
        self.overlays.pop()

    def commit(self) -> Overlay | None:
        """Merge the topmost level into the one below. At the bottom, return it: it is for the store."""
        top = self.overlays.pop()
        if not self.overlays:
            return top
        self.overlays[-1].merge(top)
        return None

    def mark_conflicted(self, depends_on: int) -> None:
        """What was read is not true any more, because of revision `depends_on`: forget what was
        written.
        """
        self.conflicted = True
        self.depends_on = max(self.depends_on, depends_on)
        self.overlays = [Overlay() for _ in self.overlays]


class Readers:
    """Who has read what: finds the transactions that a write dooms, without asking each of them for
    each key.
    """

    def __init__(self) -> None:
        self._by_key: dict[bytes, dict[Transaction, None]] = {}
        self._scanners: dict[Transaction, None] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key or self._scanners)

    def saw_key(self, reader: Transaction, key: bytes) -> None:
        """Note that `reader` looked up `key`."""
        reader.reads.saw_key(key)
        self._by_key.setdefault(key, {})[reader] = None

    def saw_range(self, reader: Transaction, start: bytes, end: bytes | None) -> None:
        """Note that `reader` saw all from `start` up to but not including `end`."""
        reader.reads.saw_range(start, end)
        self._scanners[reader] = None

    def of(self, key: bytes) -> list[Transaction]:
        """Return who has seen `key`, alone or in a range, in the order of their reading."""
        found = list(self._by_key.get(key, ()))
        found.extend(reader for reader in self._scanners if reader.reads.spans(key))
        return found

    def forget(self, reader: Transaction) -> None:
        """Drop all that was noted of `reader`, its read set too."""
        for key in reader.reads.keys:
            readers = self._by_key[key]
            del readers[reader]
            if not readers:
                del self._by_key[key]
        self._scanners.pop(reader, None)
        reader.reads = ReadSet()
