"""The account of free space: who may still write, and when history is given up. Pure.

The rule: a write leaves `min_free_space`, the floor, of the disk and of the tree's free pages together.
Files never shrink; their free pages are used again. But a large row needs pages that lie side by side,
and where there are none the file grows. So a part of the floor is left on the disk itself, even if the
files grow. The disk is never really full: that would be a failed flush (P10).

    of the floor is left         who may go on
    5/4   on the disk            all; below it history is given up: the journal uses its pages again
    1     on the disk and in     writes
          the tree's free pages
    1/2   on the disk            writes, even if the tree's free pages may be too scattered
    1/4   on the disk            deletions, and writes for which only the journal may grow
    1/8   on the disk            what certainly finds free pages

The pages in use part the free ones into a known number of runs, at most. So if there are enough free
ones, some certainly lie side by side. An emptied store has few pages in use: it can be written again.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import msgspec

#: Bytes of a page of the files.
PAGE = 4096

#: Bytes of single pages that each commit takes, about: the path to the rows, and lists of free pages.
_COMMIT = 16 * PAGE


class FreePages(msgspec.Struct, frozen=True):
    """The free pages of a file: how many bytes they are. Of the pages in use: in how many pieces they
    lie, at most, and how many bytes of them are nodes, which a commit copies to change them.
    """

    size: int = 0
    pieces: int = 0
    nodes: int = 0

    def growth(self, size: int, largest: int, single: int) -> int:
        """Return how many bytes the file may grow for `size` bytes of rows, the `largest` of which is
        known, and for `single` bytes of pages that may lie anywhere.

        So many pieces part the free pages into one run more. If none had room for the largest row, the
        runs would be less than that times their number together. Small rows share a page, and any will
        do.
        """
        scattered = self.pieces * largest if largest >= PAGE // 2 else 0
        if size + single + scattered <= self.size:
            return 0
        return size + max(0, single - self.size)


class FreeSpace(msgspec.Struct, frozen=True):
    """A reading: the bytes that are free on the disk (or left of the map), and the free pages in the
    files of the journal and of the tree.
    """

    disk: int
    journal: FreePages = FreePages()
    tree: FreePages = FreePages()


class Load(NamedTuple):
    """What is to be written: bytes to the journal, bytes to the tree, and keys of the tree, the largest
    of which takes so many bytes. A fold copies a node for each key before the old one is free.
    """

    journal: int
    tree: int
    keys: int
    largest: int


class Growth(NamedTuple):
    """How many bytes the files may grow."""

    journal: int
    tree: int


class Space:
    """The free space as last read. `floor` is in bytes; 0: nothing is ever refused. `bound` returns how
    many bytes the files may grow for what is in flight, at most.
    """

    def __init__(self, floor: int, reading: FreeSpace, bound: Callable[[], int] = int) -> None:
        self._floor = floor
        self._bound = bound
        self.note(reading, 0)

    def note(self, reading: FreeSpace, in_flight: int) -> None:
        """Take in a new reading; `in_flight` bytes are in the journal's hands, and may not be in it."""
        self._reading = reading
        self._taken = 0
        self.take(in_flight)

    def take(self, size: int) -> None:
        """Hand `size` bytes to the journal."""
        self._taken += size
        left, floor = self._reading.disk - self._taken, self._floor
        #: how many bytes are left beyond twice the floor and all that is in flight: nobody has to look
        #: closer before that
        self.margin = left - 2 * floor - self._bound() if floor else sys.maxsize
        #: is history given up, to leave writes more?
        self.low = left < floor + floor // 4 and floor > 0

    def left(self, load: Load) -> int:
        """Return how many bytes are left once `load` is written, of the disk and of the tree's free
        pages. It is less than the floor if and only if writes are refused.
        """
        growth, room = self._growth(load), self._room(load)
        return self._left(load, growth) if room >= 0 else self._floor + room

    def has_room(self, load: Load) -> bool:
        """May writes put so much in flight?"""
        return not self._floor or self._room(load) >= 0

    def has_reserve(self, load: Load) -> bool:
        """May what frees space put so much in flight?"""
        return not self._floor or self._spare(self._growth(load), 4) >= 0

    def can_hold(self, load: Load) -> bool:
        """Has the disk room for what is in flight, even if the files grow?"""
        return not self._floor or sum(self._growth(load)) <= self._reading.disk

    def fold_is_large(self, memtable: Load, load: Load) -> bool:
        """Does the memtable take as much as writes have left beside all that is in flight?"""
        return self._floor > 0 and memtable.tree + self._copies(memtable) >= self._room(load)

    def _left(self, load: Load, growth: Growth) -> int:
        return self._reading.disk + self._reading.tree.size - load.tree - growth.journal

    def _room(self, load: Load) -> int:
        """Return how many bytes more than `load` writes may put in flight."""
        growth = self._growth(load)
        left, spare = self._left(load, growth), self._spare(growth, 2 if growth.tree else 4)
        return min(left - self._floor, spare)

    def _growth(self, load: Load) -> Growth:
        journal, tree = self._reading.journal, self._reading.tree
        rows = self._taken + load.journal
        return Growth(
            journal.growth(rows, rows, _COMMIT),
            tree.growth(load.tree, load.largest, self._copies(load) + _COMMIT),
        )

    def _copies(self, load: Load) -> int:
        return min(PAGE * load.keys, self._reading.tree.nodes)

    def _spare(self, growth: Growth, share: int) -> int:
        """Return how many more bytes the files might grow and leave the floor's `share` on the disk; an
        eighth if they do not grow.
        """
        grown = sum(growth)
        return self._reading.disk - grown - self._floor // (share if grown else 8)


def in_pages(size: int, keys: int) -> int:
    """Return how many bytes of pages so many keys of `size` bytes together take, at most."""
    return size + min(size, PAGE * keys)
