"""Admission: which writes are accepted, while the disk is nearly full or folds fall behind.

The rule: a write is refused before anything of it is done. Below the floor of free space only deletions
are accepted, and no write is while more than `MAX_MEMTABLES` memtables wait for a fold.
"""

from kvactor.core.overlay import Overlay
from kvactor.core.records import HIDDEN, TOMBSTONE, Entry
from kvactor.core.space import FreeSpace, Space
from kvactor.core.store import Store
from kvactor.core.transaction import Transaction
from kvactor.errors import StorageFull, WritesStalled
from kvactor.settings import Settings

#: While a memtable is being folded, writes stall once this many times `memtable_size` wait behind it.
MAX_MEMTABLES = 4

#: Bytes of a response that is kept for a request that only deletes, at most, when writes are refused.
RESERVED_RESPONSE = 16 * 1024


class Admission:
    """Decides on the writes into `store`. `space` is the account of free space."""

    def __init__(self, store: Store, settings: Settings, free_space: FreeSpace) -> None:
        self._store = store
        self._floor = settings.min_free_space
        self._max_unfolded = MAX_MEMTABLES * settings.memtable_size
        self.space = Space(self._floor, 2 * self._floor + 2 * self._max_unfolded, free_space)

    @property
    def stalled(self) -> bool:
        """Do writes stall, because folds do not keep up with them?"""
        return self._store.folding and self._store.unfolded >= self._max_unfolded

    @property
    def has_room(self) -> bool:
        """Is there space for writes?"""
        return self.space.plenty or self.space.has_room(self._store.in_flight)

    def has_reserve(self, keys: int = 0) -> bool:
        """May space be freed, by a fold, a trimmed journal, or the deletion of so many keys?"""
        store, space = self._store, self.space
        return space.plenty or space.has_reserve(2 * store.staging, store.unfolded_keys + keys)

    def check_writable(self) -> None:
        """Raise `StorageFull` if too little space is free, and `WritesStalled` while writes stall."""
        if not self.has_room:
            raise StorageFull(
                f"Only {max(0, self.space.left)} bytes are free where the data is, some of them for "
                f"what is not folded yet, and the floor is {self._floor}. Only deletions are "
                "accepted until there is more; reads go on."
            )
        self._check_folds()

    def check_deletable(self, keys: int) -> None:
        """Raise `StorageFull` if too little space is free even to delete so many keys, and
        `WritesStalled` while writes stall.
        """
        if not self.has_reserve(keys):
            raise StorageFull(
                f"Only {max(0, self.space.left)} bytes are free where the data is, too few to delete "
                f"{keys} keys: a quarter of min_free_space is never used. Free space elsewhere on "
                "the disk; reads go on."
            )
        self._check_folds()

    def check_commit(self, changes: Overlay) -> None:
        """Raise as `check_writable`, unless all keys are deleted: then as `check_deletable`."""
        if not self.has_room and deletes(changes):
            self.check_deletable(len(changes))
        else:
            self.check_writable()

    def check_write(self, transaction: Transaction | None, key: bytes, entry: Entry) -> None:
        """Raise as `check_commit` for one write, by a transaction or without one. What is kept for the
        idempotency key of a transaction that only deletes is accepted with its deletions.
        """
        if self.space.plenty and not self._store.folding:
            return
        if entry is TOMBSTONE:
            self.check_deletable(1)
        elif (
            key >= HIDDEN
            and transaction is not None
            and len(entry) <= RESERVED_RESPONSE
            and not self.has_room
            and deletes(transaction.overlays[-1])
        ):
            self.check_deletable(2)
        else:
            self.check_writable()

    def _check_folds(self) -> None:
        if self.stalled:
            raise WritesStalled(
                f"{self._store.unfolded} bytes of changes wait to be folded into the tree, and at "
                f"most {MAX_MEMTABLES} times memtable_size may. Nothing was done; try again later."
            )


def deletes(changes: Overlay) -> bool:
    """Does it delete keys, and nothing else? Kept responses do not count."""
    visible = [entry for key, entry in changes.items() if key < HIDDEN]
    return bool(visible) and all(entry is TOMBSTONE for entry in visible)
