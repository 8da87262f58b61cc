"""The store: a stack of overlays on a tree, each merged into the one below when its time comes.
Pure and synchronous.

    staging     revisions not handed to the journal yet    `staged` looks from here down:
    flushing    revisions in the journal's hands           what a write is decided on
    -------------------------------------------------------------------------------------
    memtable    revisions in the journal                   `durable` looks from here down:
    frozen      a memtable being folded into the tree      what readers see
    tree        everything older

The rule: a revision gets its number when it is staged, and moves down as a whole, in order: `stage`,
`seal` (handed to the journal), `apply` (flushed), `freeze` (handed to the tree), `drop_frozen`
(folded). A step out of order is refused: it would lose a revision.

Expiry is ordered like a write. While revisions are staged or flushing, readers of the durable state
see it as of `horizon`, the time at which the oldest of them was staged: a key that expires later still
exists for them, as it did for that write.
"""

import heapq
import logging
from collections.abc import Iterable, Iterator, Sequence

from kvactor.core.overlay import Items, Memtable, Overlay, View, merge_ranges
from kvactor.core.protocols import Tree
from kvactor.core.records import (
    HIDDEN,
    MISSING,
    NEVER,
    TOMBSTONE,
    Entry,
    Missing,
    Revision,
    created_and_expiry_of,
    encode,
    expiry_of,
    revision_of,
    stamp,
)
from kvactor.core.work import UNCHARGED, Work
from kvactor.errors import DataDamaged, RecordDamaged

log = logging.getLogger(__name__)

#: A key, and its record or, deleted, None.
Change = tuple[bytes, bytes | None]

_NEVER = NEVER.to_bytes(8, "big")
_DAMAGED = encode(b"", b"", "")


class Staging:
    """Where changes are put before they are part of a revision."""

    def __init__(self) -> None:
        self.overlay = Overlay()
        #: how many keys the store has more, once this is applied
        self.growth = 0
        #: how many deletions were put here
        self.tombstones = 0
        #: (expiry, key) of records that expire
        self.expiring: list[tuple[int, bytes]] = []


class _Batch(Staging):
    """Revisions that go to the journal together."""

    def __init__(self) -> None:
        super().__init__()
        self.revisions: list[Revision] = []
        #: when the first was staged, in milliseconds since the epoch; NEVER: there is none
        self.began = NEVER


#: What is flushing while nothing is.
_NOTHING = _Batch()


class OutOfOrder(Exception):
    """Is raised when a step is out of order: a bug of the caller."""


class Store:
    """The data.

    `revision` is the newest durable revision, `head` the newest staged one, `keys` how many keys
    are durable.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.revision = self.head = self.folded = tree.applied
        self.keys = tree.keys
        self._staging = _Batch()
        self._flushing = _NOTHING
        #: durable revisions that are not handed to the tree yet
        self.memtable = Memtable()
        self._frozen: Memtable | None = None
        #: whether a memtable is in the tree's hands
        self.folding = False
        self._folding = self.folded
        self._swept = (0, b"")
        #: when the oldest revision that is not durable was staged; NEVER: all are durable
        self.horizon = NEVER
        self._held_since = NEVER
        self._look_at_memtables()

    def _look_at_memtables(self) -> None:
        layers = (self.memtable,) if self._frozen is None else (self.memtable, self._frozen)
        #: readers see this
        self.durable = View(layers, self._tree)
        self._look_at_pending()

    def _look_at_pending(self) -> None:
        pending = (self._staging.overlay, self._flushing.overlay)
        #: writes are decided on this
        self.staged = View(pending + self.durable.layers, self._tree)

    # -- revisions that are not durable yet --

    def depends_on(self, key: bytes) -> int:
        """Return the revision that has to be durable before an answer that depends on `key` may go
        out; 0: none.
        """
        if key in self._staging.overlay:
            return self.head
        if key in self._flushing.overlay:
            return self._flushing.revisions[-1].number
        return 0

    def depends_on_range(self, start: bytes, end: bytes | None, work: Work) -> int:
        """The same for an answer that depends on all from `start` up to but not including `end`."""
        if any(self._staging.overlay.range(start, end, False, work)):
            return self.head
        if any(self._flushing.overlay.range(start, end, False, work)):
            return self._flushing.revisions[-1].number
        return 0

    def current(self, key: bytes) -> bytes | Missing:
        """Return the record that a write of `key` replaces, expired or not, perhaps without its value.

        A damaged record is returned as an empty one, so that it can be replaced or deleted.
        """
        try:
            return self.staged.find(key, UNCHARGED, value=False)
        except RecordDamaged:
            return _DAMAGED

    @property
    def pending(self) -> int:
        """How many revisions are staged, handed to the journal or not."""
        return self.head - self.revision

    @property
    def staging(self) -> int:
        """How many bytes, with overhead, are staged and not handed to the journal yet."""
        return self._staging.overlay.size

    @property
    def unflushed(self) -> int:
        """How many bytes, with overhead, are staged or flushing."""
        return self._staging.overlay.size + self._flushing.overlay.size

    @property
    def unfolded(self) -> int:
        """How many bytes, with overhead, are staged, flushing, or in the memtable."""
        return self.unflushed + self.memtable.size

    @property
    def staging_keys(self) -> int:
        """How many keys are staged and not handed to the journal yet."""
        return len(self._staging.overlay)

    @property
    def folding_size(self) -> int:
        """How many bytes, with overhead, are in the tree's hands."""
        return 0 if self._frozen is None else self._frozen.size

    @property
    def flushing_size(self) -> int:
        """How many bytes, with overhead, are in the journal's hands."""
        return self._flushing.overlay.size

    @property
    def unfolded_keys(self) -> int:
        """How many keys are to be folded, those twice that are in two layers."""
        return sum(map(len, self._unfolded_layers()))

    @property
    def largest_unfolded(self) -> int:
        """How many bytes, with overhead, the largest entry has that is to be folded, at most."""
        return max(layer.largest for layer in self._unfolded_layers())

    def _unfolded_layers(self) -> Sequence[Overlay]:
        layers = (self._staging.overlay, self._flushing.overlay, self.memtable)
        return layers if self._frozen is None else (*layers, self._frozen)

    @property
    def flushing(self) -> bool:
        """Are revisions in the journal's hands?"""
        return bool(self._flushing.revisions)

    # -- the way down --

    def stage(self, changes: Iterable[tuple[bytes, Entry]], now: int) -> list[Change]:
        """Make one revision of drafts and tombstones, each key once, and return what it really
        changes: keys, and their records or None.

        To delete a missing key changes nothing. Without a change there is no revision.
        """
        changed = self.put(changes, now, self._staging)
        self._number(changed, now)
        return changed

    def put(self, changes: Iterable[tuple[bytes, Entry]], now: int, into: Staging) -> list[Change]:
        """Put changes of the next revision, each key once, into a staging area; return what they really
        change. They are part of a revision once it is added.
        """
        number, changed = self.head + 1, list[Change]()
        for key, entry in changes:
            before = self.current(key)
            if entry is not TOMBSTONE:
                created = number
                if before is not MISSING:
                    created_before, expires_at = created_and_expiry_of(before)
                    if expires_at > now:
                        created = created_before or number
                record = stamp(key, entry, number, created)
                if entry[20:28] != _NEVER:
                    into.expiring.append((expiry_of(entry), key))
                into.overlay.put(key, record)
                into.growth += before is MISSING
                changed.append((key, record))
            elif before is not MISSING:
                into.overlay.put(key, TOMBSTONE)
                into.growth -= 1
                into.tombstones += 1
                changed.append((key, None))
        return changed

    def add(self, staging: Staging, changed: Sequence[Change], now: int) -> None:
        """Stage one revision whose changes were put into an area of their own."""
        batch = self._staging
        batch.overlay.merge(staging.overlay)
        batch.growth += staging.growth
        batch.tombstones += staging.tombstones
        batch.expiring += staging.expiring
        self._number(changed, now)

    def _number(self, changed: Sequence[Change], now: int) -> None:
        if changed:
            batch = self._staging
            if not batch.revisions:
                batch.began = now
                self.horizon = min(self.horizon, now)
            self.head += 1
            batch.revisions.append(Revision(self.head, now, tuple(changed)))

    def hold_time(self, since: int) -> None:
        """Let readers see what is durable as of `since` at the latest; NEVER: let time go on."""
        self._held_since = since
        self._set_horizon()

    def _set_horizon(self) -> None:
        self.horizon = min(self._flushing.began, self._staging.began, self._held_since)

    def seal(self) -> Sequence[Revision]:
        """Hand over all staged revisions, to be flushed; later ones are staged behind them.

        Raises `OutOfOrder` if nothing is staged, or if the last batch is still flushing.
        """
        if self._flushing.revisions or not self._staging.revisions:
            raise OutOfOrder("seal: nothing is staged, or a batch is still flushing")
        self._flushing, self._staging = self._staging, _Batch()
        self._look_at_pending()
        return self._flushing.revisions

    def apply(self) -> Sequence[Revision]:
        """Let readers see the sealed revisions, now durable. Raises `OutOfOrder` if there are none."""
        if not self._flushing.revisions:
            raise OutOfOrder("apply: nothing is flushing")
        batch, self._flushing = self._flushing, _NOTHING
        self.memtable.merge(batch.overlay)
        self.memtable.tombstones += batch.tombstones
        for expiring in batch.expiring:
            heapq.heappush(self.memtable.expiring, expiring)
        self.keys += batch.growth
        self.revision = batch.revisions[-1].number
        self._set_horizon()
        self._look_at_pending()
        return batch.revisions

    def freeze(self) -> Items:
        """Hand over the memtable's entries in key order, to be folded up to `revision`; later
        changes go into a new memtable.

        Raises `OutOfOrder` while a frozen one is being folded.
        """
        if self._frozen is not None:
            raise OutOfOrder("freeze: a memtable is still being folded")
        self._frozen, self.memtable, self.folding = self.memtable, Memtable(), True
        self._folding = self.revision
        self._look_at_memtables()
        return self._frozen.range(b"", None, False, Work())

    def drop_frozen(self) -> None:
        """Drop the frozen memtable: the tree has its entries. Raises `OutOfOrder` if there is none, or
        if the tree does not have them.
        """
        if self._frozen is None:
            raise OutOfOrder("drop_frozen: no memtable is being folded")
        self._tree.snapshot()
        if self._tree.applied < self._folding:
            raise OutOfOrder(f"drop_frozen: the tree has only reached revision {self._tree.applied}")
        self._frozen, self.folding = None, False
        self.folded = self._folding
        self._swept = (0, b"")
        self._look_at_memtables()

    def recover(self, revisions: Iterable[Revision]) -> None:
        """Apply what the journal holds beyond the tree.

        Raises `DataDamaged` if a revision is missing.
        """
        for revision in revisions:
            if revision.number != self.head + 1:
                raise DataDamaged(
                    f"Revision {self.head + 1} is missing in the journal, which goes on with "
                    f"{revision.number}."
                )
            changes = Overlay()
            for key, record in revision.changes:
                before = self.current(key)
                self.keys += (before is MISSING) - (record is None)
                self.memtable.tombstones += record is None
                changes.put(key, TOMBSTONE if record is None else record)
                if record is not None and expiry_of(record) != NEVER:
                    heapq.heappush(self.memtable.expiring, (expiry_of(record), key))
            self.memtable.merge(changes)
            self.head = self.revision = revision.number

    def hidden(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield the durable hidden keys: the revision, the key, and the bytes of the record.

        It ends at a damaged record, with a warning: those behind it are not known.
        """
        ranges = self.durable.ranges(HIDDEN, None, reverse=False, values=True, work=Work())
        try:
            for key, record in merge_ranges(ranges, reverse=False):
                if record is not TOMBSTONE:
                    yield revision_of(record), key, len(record)
        except RecordDamaged as error:
            log.warning("idempotency keys are not counted from a damaged one on: %s", error)

    # -- expiry --

    def expired(self, now: int, limit: int) -> tuple[list[bytes], bool]:
        """Return keys whose records have expired by `now` and are still there, having looked at no
        more than `limit`.

        The second result says whether there may be more.
        """
        candidates: list[bytes] = []
        for layer in (self.memtable, self._frozen):
            while layer and layer.expiring and layer.expiring[0][0] <= now and len(candidates) < limit:
                candidates.append(heapq.heappop(layer.expiring)[1])
        for position in self._tree.expired(self._swept, now):
            if len(candidates) >= limit:
                break
            self._swept = position
            candidates.append(position[1])
        keys = [key for key in dict.fromkeys(candidates) if self._has_expired(key, now)]
        return keys, len(candidates) >= limit

    def _has_expired(self, key: bytes, now: int) -> bool:
        record = self.current(key)
        return record is not MISSING and expiry_of(record) <= now
