"""The account of free space: who may still write, and when history is given up. Pure.

The rule: a write needs `min_free_space`, the floor, beyond all that is in flight. What frees space, a
deletion, a sweep, a fold, a trimmed journal, may use the reserve below it, down to a quarter of the
floor, so that the disk is never really full: that would be a failed flush (P10).

Files never shrink, but their free pages are used again. They count as free space, those of each file up
to a quarter of the floor. So a write always finds half of the floor free on the disk, even if
the free pages lie so scattered that large rows do not fit between them.

    5/4 floor   history is given up, and folds come early: their pages become free
    floor       writes are refused: free pages count
    1/4 floor   deletions are refused, too: free pages do not count
"""

import msgspec

#: Bytes that a fold copies for one key, at most: a page of the tree.
PAGE = 4096


class FreeSpace(msgspec.Struct, frozen=True):
    """A reading, in bytes: of the disk (or of what is left of the map), and of the free pages in the
    files of the journal and of the tree.
    """

    disk: int
    journal: int = 0
    tree: int = 0


class Space:
    """The free space as last read, less what was handed to the journal since. `floor` is in bytes; 0:
    nothing is ever refused. `plenty`, in bytes, is so much that nothing has to be read between ticks.
    """

    def __init__(self, floor: int, plenty: int, reading: FreeSpace) -> None:
        self._floor = floor
        self._plenty = plenty
        self.note(reading, 0)

    def note(self, reading: FreeSpace, in_flight: int) -> None:
        """Take in a new reading; `in_flight` bytes are in the journal's hands, and may not be in it."""
        share = self._floor // 4
        self._reusable = min(reading.journal, share) + min(reading.tree, share)
        self._disk = reading.disk
        self.take(in_flight)

    def take(self, size: int) -> None:
        """Hand `size` bytes to the journal."""
        self._disk -= size
        #: is so much free that nobody has to look closer?
        self.plenty = not self._floor or self._disk >= self._plenty
        #: is history given up, to leave writes more?
        self.low = self._floor > 0 and self._disk < self._floor + self._floor // 4

    @property
    def left(self) -> int:
        """How many bytes can be written: of the disk and of free pages."""
        return self._disk + self._reusable

    def has_room(self, in_flight: int) -> bool:
        """Are writes allowed, with so many bytes in flight?"""
        return self.plenty or self.left - in_flight >= self._floor

    def has_reserve(self, in_flight: int, keys: int) -> bool:
        """May something be done that frees space, with so many bytes in flight, and so many keys that
        are to be folded then?
        """
        return self.plenty or self._disk - in_flight - PAGE * keys >= self._floor // 4

    def fold_is_large(self, keys: int) -> bool:
        """May a fold of so many keys copy a quarter of what is free on the disk?"""
        return not self.plenty and PAGE * keys >= max(self._disk, 0) // 4 > 0
