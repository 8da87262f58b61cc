"""A small disk with two files, a journal and a tree, as LMDB writes them: pages that are free inside of
a file are used again, but a large row needs some side by side, and no file ever shrinks.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final
from zlib import crc32

from kvactor.core.protocols import Done, ForgetDone
from kvactor.core.records import TOMBSTONE, Entry, Revision
from kvactor.core.space import PAGE, FreePages
from kvactor.storage.memory import MemoryJournal, MemoryTree

#: Rows that share a node of the tree.
_ROWS: Final = 20


class SmallDisk:
    """A disk with room for `size` bytes, of which others use `foreign`."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.foreign = 0
        self.random = Random(seed)
        self.journal = DiskJournal(self)
        self.tree = DiskTree(self)

    @property
    def free(self) -> int:
        """How many bytes the files may grow."""
        return self.size - self.foreign - self.journal.file.size - self.tree.file.size


class File:
    """A file on a disk. Its pages are numbers."""

    def __init__(self, disk: SmallDisk) -> None:
        self._disk = disk
        self._pages = 0
        #: pages that a commit may use
        self.free: set[int] = set()
        self._freed: set[int] = set()
        self.rows: dict[object, range] = {}

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self._pages * PAGE

    def put(self, row: object, size: int) -> None:
        """Write a row. Raises `OSError` if the disk is full."""
        count = max(1, -(-size // PAGE))
        begins = (page for page in self.free if page - 1 not in self.free)
        runs = [page for page in begins if self.free.issuperset(range(page, page + count))]
        if runs:
            first = self._disk.random.choice(sorted(runs))
            self.free.difference_update(range(first, first + count))
        elif count * PAGE > self._disk.free:
            raise OSError(28, "No space left on device")
        else:
            first = self._pages
            self._pages += count
        self.delete(row)
        self.rows[row] = range(first, first + count)

    def delete(self, row: object) -> None:
        """Delete a row, if there is one. Its pages may be used by the next commit."""
        self._freed.update(self.rows.pop(row, ()))

    def commit(self) -> None:
        """End a commit."""
        self.free |= self._freed
        self._freed.clear()

    def free_pages(self, nodes: int) -> FreePages:
        """See `Journal.reusable`."""
        return FreePages(len(self.free) * PAGE, len(self.rows), nodes * PAGE)


class DiskJournal(MemoryJournal):
    """A journal on a small disk."""

    def __init__(self, disk: SmallDisk) -> None:
        super().__init__()
        self._disk = disk
        self.file = File(disk)

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        super().append(revisions, _nobody)
        done(self._write(revision.number for revision in revisions))

    def forget(self, done: ForgetDone) -> None:
        self._trim()
        done(False, self._write(()))

    def _write(self, numbers: Iterable[int]) -> OSError | None:
        try:
            self.file.put("node", PAGE)
            for number in numbers:
                self.file.put(number, len(self.rows[number]))
        except OSError as error:
            return error
        for row in self.file.rows.keys() - self.rows.keys() - {"node"}:
            self.file.delete(row)
        self.file.commit()
        return None

    def free_space(self) -> int:
        return max(0, self._disk.free)

    def reusable(self) -> FreePages:
        return self.file.free_pages(1)


class DiskTree(MemoryTree):
    """A tree on a small disk."""

    def __init__(self, disk: SmallDisk) -> None:
        super().__init__()
        self._disk = disk
        self.file = File(disk)

    def fold(self, changes: Iterable[tuple[bytes, Entry]], applied: int, done: Done) -> None:
        kept = list(changes)
        super().fold(kept, applied, _nobody)
        try:
            for node in sorted({crc32(key) % self._nodes for key, _ in kept}):
                self.file.put(node, PAGE)
            for key, entry in kept:
                if entry is TOMBSTONE:
                    self.file.delete(key)
                else:
                    self.file.put(key, len(entry))
        except OSError as error:
            done(error)
            return
        self.file.commit()
        done(None)

    @property
    def _nodes(self) -> int:
        return 1 + self.keys // _ROWS

    def free_space(self) -> int:
        return max(0, self._disk.free)

    def reusable(self) -> FreePages:
        return self.file.free_pages(self._nodes)


def _nobody(_: BaseException | None) -> None:
    """Nobody is told."""
