"""A journal and a tree without a disk: for tests, and for `--memory`."""

import sys
from collections.abc import Iterable, Iterator, Sequence

from sortedcontainers import SortedDict, SortedList

from kvactor.core.feed import take
from kvactor.core.protocols import Done, ForgetDone, ReadDone
from kvactor.core.records import (
    MISSING,
    NEVER,
    TOMBSTONE,
    Entry,
    Missing,
    Revision,
    decode_revision,
    encode_revision,
    expiry_of,
    without_value,
)
from kvactor.core.space import PAGE, FreePages
from kvactor.core.work import STEP, Work
from kvactor.errors import DataDamaged


class MemoryJournal:
    """A journal that lasts as long as the process. `rows` are the bytes that a disk would get."""

    def __init__(self) -> None:
        self.rows: dict[int, bytes] = {}
        self._head = 0
        self._taken = 0
        self._below, self._size, self._folded = 0, sys.maxsize, 0

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        """See `Journal`."""
        for revision in revisions:
            self.rows[revision.number] = row = encode_revision(revision)
            self._taken += len(row)
        self._head = revisions[-1].number
        self._trim()
        done(None)

    def _trim(self) -> None:
        end = min(self._folded, self._head - 1)
        while (oldest := next(iter(self.rows), end + 1)) <= end:
            if oldest >= self._below and self._taken <= self._size:
                break
            self._taken -= len(self.rows.pop(oldest))

    def replay(self, after: int) -> Iterator[Revision]:
        """See `Journal`."""
        for number in range(max(after + 1, next(iter(self.rows), 0)), self._head + 1):
            if number in self.rows:
                yield decode_revision(number, self.rows[number])

    def read(self, after: int, limit: int, done: ReadDone) -> None:
        """See `Journal`."""
        try:
            found = take(self.replay(after), limit)
        except DataDamaged as error:
            done([], error)
        else:
            done(found, None)

    def head(self) -> int:
        """See `Journal`."""
        return self._head

    def trim(self, below: int, size: int, folded: int) -> None:
        """See `Journal`. The size is that of the rows."""
        self._below, self._size, self._folded = below, size, folded

    def forget(self, done: ForgetDone) -> None:
        """See `Journal`."""
        self._trim()
        done(False, None)

    def free_space(self) -> int:
        """See `Journal`."""
        return sys.maxsize

    def reusable(self) -> FreePages:
        """See `Journal`."""
        return FreePages()

    def close(self) -> None:
        """See `Journal`."""


class MemoryTree:
    """A tree that lasts as long as the process."""

    def __init__(self) -> None:
        self._records: SortedDict[bytes, bytes] = SortedDict()
        self._expiries: SortedList[tuple[int, bytes]] = SortedList()
        self._applied = 0

    @property
    def applied(self) -> int:
        """See `Tree`."""
        return self._applied

    @property
    def keys(self) -> int:
        """See `Tree`."""
        return len(self._records)

    def get(self, key: bytes, work: Work) -> bytes | Missing:
        """See `Tree`. Nothing is read or copied, so nothing is charged."""
        return self._records.get(key, MISSING)

    def head(self, key: bytes, work: Work) -> bytes | Missing:
        """See `Tree`."""
        record = self._records.get(key, MISSING)
        return MISSING if record is MISSING else without_value(record)

    def range(
        self, start: bytes, end: bytes | None, reverse: bool, values: bool, work: Work
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Tree`."""
        for key in self._records.irange(start, end, inclusive=(True, False), reverse=reverse):
            work.charge(STEP)
            record = self._records[key]
            yield key, record if values else without_value(record)

    def expired(self, after: tuple[int, bytes], now: int) -> Iterator[tuple[int, bytes]]:
        """See `Tree`."""
        return self._expiries.irange(after, (now + 1, b""), inclusive=(False, False))

    def fold(self, changes: Iterable[tuple[bytes, Entry]], applied: int, done: Done) -> None:
        """See `Tree`."""
        for key, entry in changes:
            before = self._records.pop(key, None)
            if before is not None and expiry_of(before) != NEVER:
                self._expiries.remove((expiry_of(before), key))
            if entry is not TOMBSTONE:
                self._records[key] = entry
                if expiry_of(entry) != NEVER:
                    self._expiries.add((expiry_of(entry), key))
        self._applied = applied
        done(None)

    def snapshot(self) -> None:
        """See `Tree`: there is only one state, and a fold ends before the next read."""

    def free_space(self) -> int:
        """See `Tree`."""
        return sys.maxsize

    def reusable(self) -> FreePages:
        """See `Tree`."""
        return FreePages(nodes=PAGE * len(self._records))

    def close(self) -> None:
        """See `Tree`."""
