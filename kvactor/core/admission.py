"""Admission: which writes are accepted, while the disk is nearly full or cannot keep up.

The rule: a write is refused before anything of it is done. Below the floor of free space only deletions
are accepted, and no write is while more than `MAX_MEMTABLES` memtables wait for a fold, or
`MAX_UNFLUSHED` bytes for a flush. While something is still to be folded, or the journal forgets, the
client is told to try again: that gives room.
"""

from kvactor.core.overlay import Overlay
from kvactor.core.records import ENTRY_OVERHEAD, HIDDEN, TOMBSTONE, Entry
from kvactor.core.space import PAGE, FreeSpace, Load, Space, in_pages
from kvactor.core.store import Store
from kvactor.core.transaction import Transaction
from kvactor.errors import StorageFull, WritesStalled
from kvactor.settings import Settings

#: While a memtable is being folded, writes stall once this many times `memtable_size` wait behind it.
MAX_MEMTABLES = 4

#: Writes stall, too, once so many bytes, with overhead, wait for the disk: those of commits are in no
#: other account of memory.
MAX_UNFLUSHED = 32 * 1024 * 1024

#: How many bytes the files may grow for a byte that is staged, with overhead, at most: see `_bound`.
GROWTH = 4 + PAGE // ENTRY_OVERHEAD

#: A write of nothing: bytes, keys, bytes of the largest one.
_NOTHING = (0, 0, 0)

#: Bytes of a response that is kept for a request that only deletes, at most, when writes are refused.
RESERVED_RESPONSE = 16 * 1024


class Admission:
    """Decides on the writes into `store`. `space` is the account of free space."""

    def __init__(self, store: Store, settings: Settings, free_space: FreeSpace) -> None:
        self._store = store
        self._floor = settings.min_free_space
        self._max_unfolded = MAX_MEMTABLES * settings.memtable_size
        self.space = Space(self._floor, free_space, self._bound)
        #: does the journal forget history?
        self.forgetting = False
        #: was a write refused that a fold may give room?
        self.wants_fold = False
        #: the smallest write that was refused and still is: bytes, keys, bytes of the largest one
        self._refused = _NOTHING

    @property
    def plenty(self) -> bool:
        """Is so much free that nobody has to look closer?"""
        return self.space.margin >= GROWTH * self._store.staging

    @property
    def stalled(self) -> bool:
        """Do writes stall, because flushes or folds do not keep up with them?"""
        store = self._store
        return store.unflushed >= MAX_UNFLUSHED or (
            store.folding and store.unfolded >= self._max_unfolded
        )

    @property
    def left(self) -> int:
        """How many bytes are left for writes: fewer than the floor while they are refused."""
        return max(0, self.space.left(self._load(*self._refused)))

    @property
    def full(self) -> bool:
        """Are writes refused, and will nothing that is under way change that?"""
        return not (self.has_room(*self._refused) or self._will_change)

    def tick(self) -> None:
        """Forget the write that was refused if it has room by now."""
        if self.has_room(*self._refused):
            self._refused = _NOTHING

    @property
    def fold_is_due(self) -> bool:
        """Is little space left, and is the memtable a large part of what is in flight?"""
        memtable, space = self._store.memtable, self.space
        if self.plenty or not memtable:
            return False
        keys = len(memtable)
        folded = Load(0, in_pages(memtable.size, keys), keys, memtable.largest)
        return self.wants_fold or space.fold_is_large(folded, self._load())

    def has_room(self, size: int = 0, keys: int = 0, largest: int = 0) -> bool:
        """Is there space for writes, of so many keys of so many bytes together?"""
        return self.plenty or self.space.has_room(self._load(size, keys, largest))

    def has_reserve(self, size: int = 0, keys: int = 0) -> bool:
        """May space be freed: may the journal be trimmed, and so many keys of so many bytes together be
        deleted?
        """
        return self.plenty or self.space.has_reserve(self._load(size, keys))

    def can_fold(self) -> bool:
        """Is there space for a fold?"""
        return self.plenty or self.space.can_hold(self._load())

    def check_writable(self, size: int, keys: int, largest: int) -> None:
        """Raise `StorageFull` if too little space is free for a write of so many keys of so many bytes
        together, the largest of which is given, and `WritesStalled` while writes stall.
        """
        if not self.has_room(size, keys, largest):
            self._stall_if_room_is_made()
            if self._refused == _NOTHING or size < self._refused[0]:
                self._refused = (size, keys, largest)
            raise StorageFull(
                f"{self._left} bytes are free where the data is, and a write of {size} bytes would "
                f"leave less than min_free_space ({self._floor}). Delete keys, free space on the disk, "
                "or lower min_free_space; reads go on."
            )
        self._check_stalled()

    def check_deletable(self, size: int, keys: int) -> None:
        """Raise `StorageFull` if too little space is free even to delete so many keys of so many bytes,
        and `WritesStalled` while writes stall.
        """
        if not self.has_reserve(size, keys):
            self._stall_if_room_is_made()
            raise StorageFull(
                f"{self._left} bytes are free where the data is, too few to delete {keys} keys: a part "
                f"of min_free_space ({self._floor}) is never used. Delete fewer at once, or free space "
                "on the disk; reads go on."
            )
        self._check_stalled()

    def check_commit(self, changes: Overlay) -> None:
        """Raise as `check_writable`, unless all keys are deleted: then as `check_deletable`."""
        if self.plenty and not self.stalled:
            return
        size, keys, largest = changes.size, len(changes), changes.largest
        if not self.has_room(size, keys, largest) and deletes(changes):
            self.check_deletable(size, keys)
        else:
            self.check_writable(size, keys, largest)

    def check_write(self, transaction: Transaction | None, key: bytes, entry: Entry) -> None:
        """Raise as `check_commit` for one write, by a transaction or without one. What is kept for the
        idempotency key of a transaction that only deletes is accepted with its deletions.
        """
        if self.plenty and not self.stalled:
            return
        size = ENTRY_OVERHEAD + len(key) + (0 if entry is TOMBSTONE else len(entry))
        if entry is TOMBSTONE:
            self.check_deletable(size, 1)
        elif (
            key >= HIDDEN
            and transaction is not None
            and len(entry) <= RESERVED_RESPONSE
            and not self.has_room(size, 1, size)
            and deletes(transaction.overlays[-1])
        ):
            self.check_deletable(size, 2)
        else:
            self.check_writable(size, 1, size)

    def _bound(self) -> int:
        """Return how many bytes the files may grow for what is in flight, at most."""
        store = self._store
        # As `_load`, but from above: each byte is once in the journal, and once in the tree.
        return 4 * (store.unfolded + store.folding_size) + PAGE * store.unfolded_keys

    def _load(self, size: int = 0, keys: int = 0, largest: int = 0) -> Load:
        """Return what is in flight, with so many more keys of so many bytes together."""
        store = self._store
        staging, unfolded_keys = store.staging + size, store.unfolded_keys + keys
        return Load(
            journal=in_pages(staging, store.staging_keys + keys),
            tree=in_pages(store.unfolded + store.folding_size + size, unfolded_keys),
            keys=unfolded_keys,
            largest=max(largest, store.largest_unfolded),
        )

    @property
    def _will_change(self) -> bool:
        return self.forgetting or (self._store.unfolded_keys > 0 and self.can_fold())

    @property
    def _left(self) -> int:
        return max(0, self.space.left(self._load()))

    def _stall_if_room_is_made(self) -> None:
        if self._will_change:
            self.wants_fold = True
            raise WritesStalled(
                "What was written before is being folded into the tree, to make room on the disk. "
                "Nothing was done; try again later."
            )

    def _check_stalled(self) -> None:
        if self.stalled:
            raise WritesStalled(
                f"{self._store.unfolded} bytes of changes wait to be flushed to the disk or folded "
                f"into the tree. At most {MAX_UNFLUSHED} bytes may wait for a flush, and "
                f"{MAX_MEMTABLES} times memtable_size for a fold. Nothing was done; try again later."
            )


def deletes(changes: Overlay) -> bool:
    """Does it delete keys, and nothing else? Kept responses do not count."""
    visible = [entry for key, entry in changes.items() if key < HIDDEN]
    return bool(visible) and all(entry is TOMBSTONE for entry in visible)
