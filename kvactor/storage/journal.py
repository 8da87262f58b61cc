"""The journal in an LMDB environment: one row per revision, many rows per commit.

The rule: rows only ever follow the head, and a commit is what makes them durable (LMDB's sync and
metasync stay on). Rows that are not needed any more are deleted in the same commit as an append, so
that trimming costs no flush of its own; without appends, in commits of their own, piece by piece.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import lmdb

from kvactor.core.feed import take
from kvactor.core.protocols import Done, ForgetDone, ReadDone
from kvactor.core.records import (
    Revision,
    decode_revision,
    decode_revision_number,
    encode_revision,
    encode_revision_number,
)
from kvactor.core.space import FreePages
from kvactor.errors import DataDamaged
from kvactor.storage.environment import free_space, open_environment, reusable, settle, size

#: How many more rows an append may delete than it adds.
_TRIM_AHEAD = 64
#: No revision has this key.
_NO_ROW = encode_revision_number(0)
#: How many rows one commit deletes that appends nothing, at most.
_FORGET_ROWS = 1000
#: Bytes of rows that one commit deletes, about. Half a million pages are listed as free then, which
#: takes some milliseconds.
_FORGET_SIZE = 2 << 30


class LmdbJournal:
    """A journal in the directory `path`.

    Only one may be open on it; `map_size` is its upper bound in bytes.
    """

    def __init__(self, path: Path, map_size: int) -> None:
        self._path = path
        self._env = open_environment(path, map_size)
        # A write transaction of LMDB's lives in one thread.
        self._thread = ThreadPoolExecutor(1, "kvactor-journal")
        # Reading old history must hold up no flush. LMDB's readers do not wait for its writer.
        self._reader = ThreadPoolExecutor(1, "kvactor-history")
        self._below, self._size, self._folded = 0, sys.maxsize, 0
        #: bytes of rows that the last commit has deleted
        self._fresh = 0

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        """See `Journal`."""
        future = self._thread.submit(self._flush, revisions)
        future.add_done_callback(lambda future: _report(future, done))

    def _flush(self, revisions: Sequence[Revision]) -> None:
        rows = [
            (encode_revision_number(revision.number), encode_revision(revision))
            for revision in revisions
        ]
        with self._env.begin(write=True) as txn:
            self._write(txn, rows)

    def _write(self, txn: "lmdb.Transaction[bytes]", rows: list[tuple[bytes, bytes]]) -> None:
        cursor = txn.cursor()
        _, added = cursor.putmulti(rows, append=True)
        if added != len(rows):
            raise DataDamaged(
                f"The journal in {self._path} holds rows that this process did not write."
            )
        self._trim(txn, len(rows) + _TRIM_AHEAD)

    def _trim(self, txn: "lmdb.Transaction[bytes]", limit: int) -> bool:
        """Delete the oldest rows that `trim` allows, at most `limit`; may there be more?"""
        cursor = txn.cursor()
        folded = encode_revision_number(self._folded)
        self._fresh = 0
        if not cursor.first() or cursor.key() > folded:
            return False  # as with most appends
        below = encode_revision_number(self._below)
        newest = cursor.key() if cursor.last() else b""
        whole = taken = size(txn)
        more = True
        for _ in range(limit):
            cursor.first()
            key = cursor.key()
            if key > folded or key == newest or (key >= below and taken <= self._size):
                more = False
                break
            cursor.delete()
            taken = size(txn)
            if taken < whole - _FORGET_SIZE:
                break
        self._fresh = whole - taken
        return more

    def replay(self, after: int) -> Iterator[Revision]:
        """See `Journal`."""
        try:
            with self._env.begin() as txn:
                # Each row on its own: a cursor that reaches a damaged page makes LMDB abort
                # the process.
                cursor = txn.cursor()
                if not cursor.set_range(encode_revision_number(after + 1)):
                    return
                first = decode_revision_number(cursor.key())
                cursor.last()
                for number in range(first, decode_revision_number(cursor.key()) + 1):
                    row = txn.get(encode_revision_number(number))
                    if row is None:
                        raise DataDamaged(f"Revision {number} is missing in the journal.")
                    yield decode_revision(number, row)
        except lmdb.Error as error:
            raise DataDamaged(f"The journal in {self._path} cannot be read: {error}.") from error

    def read(self, after: int, limit: int, done: ReadDone) -> None:
        """See `Journal`."""
        future = self._reader.submit(lambda: take(self.replay(after), limit))
        future.add_done_callback(lambda future: _report_read(future, done))

    def head(self) -> int:
        """See `Journal`."""
        try:
            with self._env.begin() as txn:
                cursor = txn.cursor()
                return decode_revision_number(cursor.key()) if cursor.last() else 0
        except lmdb.Error as error:
            raise DataDamaged(f"The journal in {self._path} cannot be read: {error}.") from error

    def trim(self, below: int, size: int, folded: int) -> None:
        """See `Journal`. The size is that of the rows' pages."""
        self._below, self._size, self._folded = below, size, folded

    def forget(self, done: ForgetDone) -> None:
        """See `Journal`."""
        future = self._thread.submit(self._forget)
        future.add_done_callback(lambda future: _report_forgotten(future, done))

    def _forget(self) -> bool:
        # Without a change, LMDB writes nothing.
        fresh = self._fresh
        with self._env.begin(write=True) as txn:
            more = self._trim(txn, _FORGET_ROWS)
        if fresh or self._fresh:
            with self._env.begin(write=True) as txn:
                settle(txn, _NO_ROW)
            self._fresh = 0
        return more

    def free_space(self) -> int:
        """See `Journal`."""
        return free_space(self._env)

    def reusable(self) -> FreePages:
        """See `Journal`."""
        return reusable(self._env, fresh=self._fresh)

    def close(self) -> None:
        """See `Journal`."""
        self._thread.shutdown()
        # A reading that has not begun has no reader any more.
        self._reader.shutdown(cancel_futures=True)
        self._env.close()


def _report(future: "Future[None]", done: Done) -> None:
    done(future.exception())


def _report_forgotten(future: "Future[bool]", done: ForgetDone) -> None:
    error = future.exception()
    done(error is None and future.result(), error)


def _report_read(future: "Future[list[Revision]]", done: ReadDone) -> None:
    if not future.cancelled():
        error = future.exception()
        done([] if error else future.result(), error)
