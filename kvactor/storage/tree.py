"""The tree in an LMDB environment: the records, an index of their expiries, and how far the journal
is folded in.

The rule: `applied` is written in the same commit as the changes that it stands for, so a fold that
is cut short has no effect, and the journal is replayed from the end of the last complete one.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from struct import Struct

import lmdb

from kvactor.core.protocols import Done
from kvactor.core.records import (
    MISSING,
    NEVER,
    OLD_HEADER_SIZE,
    TOMBSTONE,
    Entry,
    Missing,
    expiry_of,
    head_size,
    verify,
    verify_head,
    without_value,
)
from kvactor.core.space import FreePages
from kvactor.core.work import BYTES, STEP, Work
from kvactor.errors import RecordDamaged
from kvactor.storage.environment import free_space, open_environment, reusable, settle

_NUMBER = Struct(">Q")
_APPLIED = b"applied"
#: No row of the meta database has this key.
_NOTHING = b"nothing"


class LmdbTree:
    """A tree in the directory `path`.

    Only one may be open on it; `map_size` is its upper bound in bytes.
    """

    def __init__(self, path: Path, map_size: int) -> None:
        self._env = open_environment(path, map_size, max_dbs=3)
        self._records = self._env.open_db(b"records")
        # An expiry (8 bytes) has its keys as sorted duplicates: together they would be longer than
        # LMDB lets a key be.
        self._expiries = self._env.open_db(b"expiries", dupsort=True)
        self._meta = self._env.open_db(b"meta")
        self._thread = ThreadPoolExecutor(1, "kvactor-tree")
        self._look()

    def _look(self) -> None:
        # Buffers: the length of a record is known before it is copied.
        self._read = self._env.begin(self._records, buffers=True)
        self.applied: int = _NUMBER.unpack(self._read.get(_APPLIED, bytes(8), self._meta))[0]
        self.keys = self._read.stat(self._records)["entries"]

    def _find(self, key: bytes) -> memoryview | None:
        try:
            return self._read.get(key)
        except lmdb.Error as error:
            raise _unreadable(key, error) from error

    def get(self, key: bytes, work: Work) -> bytes | Missing:
        """See `Tree`."""
        found = self._find(key)
        return MISSING if found is None else _record(key, found, work)

    def head(self, key: bytes, work: Work) -> bytes | Missing:
        """See `Tree`."""
        found = self._find(key)
        return MISSING if found is None else _head(key, found, work)

    def range(
        self, start: bytes, end: bytes | None, reverse: bool, values: bool, work: Work
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Tree`."""
        read = _record if values else _head
        try:
            with self._read.cursor() as cursor:
                if not reverse:
                    items = cursor.iternext() if cursor.set_range(start) else iter(())
                    inside = takewhile(lambda item: end is None or bytes(item[0]) < end, items)
                else:
                    # iterprev begins at the last key below `end`.
                    beyond = end is not None and cursor.set_range(end)
                    placed = cursor.prev() if beyond else cursor.last()
                    items = cursor.iterprev() if placed else iter(())
                    inside = takewhile(lambda item: bytes(item[0]) >= start, items)
                for place, found in inside:
                    work.charge(STEP)
                    key = bytes(place)
                    yield key, read(key, found, work)
        except lmdb.Error as error:
            raise _unreadable(start, error) from error

    def expired(self, after: tuple[int, bytes], now: int) -> Iterator[tuple[int, bytes]]:
        """See `Tree`."""
        with self._read.cursor(self._expiries) as cursor:
            expires_at, key = after
            if cursor.set_range_dup(_NUMBER.pack(expires_at), key + b"\0") or cursor.set_range(
                _NUMBER.pack(expires_at + 1)
            ):
                for number, place in cursor:
                    if (expires_at := _NUMBER.unpack(number)[0]) > now:
                        return
                    yield expires_at, bytes(place)

    def fold(self, changes: Iterable[tuple[bytes, Entry]], applied: int, done: Done) -> None:
        """See `Tree`."""
        future = self._thread.submit(self._fold, changes, applied)
        future.add_done_callback(lambda future: done(future.exception()))

    def _fold(self, changes: Iterable[tuple[bytes, Entry]], applied: int) -> None:
        with self._env.begin(self._records, write=True) as txn:
            self._write(txn, changes, applied)
        with self._env.begin(self._meta, write=True) as txn:
            settle(txn, _NOTHING)

    def _write(
        self, txn: "lmdb.Transaction[bytes]", changes: Iterable[tuple[bytes, Entry]], applied: int
    ) -> None:
        for key, entry in changes:
            before = txn.pop(key) if entry is TOMBSTONE else txn.replace(key, entry)
            if before is not None and _indexed_expiry(before) != NEVER:
                txn.delete(_NUMBER.pack(_indexed_expiry(before)), key, self._expiries)
            if entry is not TOMBSTONE and expiry_of(entry) != NEVER:
                txn.put(_NUMBER.pack(expiry_of(entry)), key, db=self._expiries)
        txn.put(_APPLIED, _NUMBER.pack(applied), db=self._meta)

    def snapshot(self) -> None:
        """See `Tree`."""
        self._read.abort()
        self._look()

    def free_space(self) -> int:
        """See `Tree`."""
        return free_space(self._env)

    def reusable(self) -> FreePages:
        """See `Tree`."""
        return reusable(self._env, (self._records, self._expiries, self._meta))

    def close(self) -> None:
        """See `Tree`."""
        self._thread.shutdown()
        self._read.abort()
        self._env.close()


def _record(key: bytes, found: memoryview, work: Work) -> bytes:
    work.charge(len(found) // BYTES)
    record = bytes(found)
    verify(key, record)
    return record


def _head(key: bytes, found: memoryview, work: Work) -> bytes:
    size = head_size(found)
    work.charge(size // BYTES)
    head = bytes(found[:size])
    verify_head(key, head)
    return without_value(head)


def _unreadable(key: bytes, error: lmdb.Error) -> RecordDamaged:
    return RecordDamaged(f"The tree cannot be read at key {key.decode(errors='replace')!r}: {error}.")


def _indexed_expiry(record: bytes) -> int:
    """Return the indexed expiry of a record that is about to be replaced; it may be damaged."""
    return expiry_of(record) if len(record) >= OLD_HEADER_SIZE else NEVER
