"""The keys, as one request sees them: within a transaction, or without one.

The rule: every answer notes the revision and the reads that it depends on. An answer waits for the
staged revisions that it has seen (P3). An isolated transaction conflicts with every later write of a
key that it has looked up in the store (P6). Its size is bounded (P8).
"""

from collections.abc import Collection, Iterable
from itertools import islice

from kvactor.core import records
from kvactor.core.admission import Admission
from kvactor.core.conflicts import ConflictIndex
from kvactor.core.context import Context, Page
from kvactor.core.kept import KeptResponses
from kvactor.core.overlay import Overlay, merge_ranges
from kvactor.core.priority import MustWait, Priority
from kvactor.core.records import HIDDEN, MISSING, NEVER, TOMBSTONE, Entry, Missing
from kvactor.core.store import Change, Staging, Store
from kvactor.core.transaction import Kind, Transaction
from kvactor.core.work import (
    BYTES,
    CONFLICT,
    LOOKUP,
    RANGE,
    READ_RANGE,
    STAGE,
    UNLIMITED,
    WRITE,
    Steps,
)
from kvactor.errors import (
    InvalidKey,
    RecordDamaged,
    TransactionTooLarge,
    ValueTooLarge,
)
from kvactor.settings import Settings

#: Entries that are staged in one step, at most.
STAGED_PER_STEP = 500

#: Responses kept for idempotency keys that one revision forgets to make room, at most.
FORGOTTEN_PER_REVISION = 1000


class Keyspace:
    """The keys of `store`. Isolated transactions that read them are in `conflicts`."""

    def __init__(
        self,
        store: Store,
        conflicts: ConflictIndex[Transaction],
        settings: Settings,
        admission: Admission,
    ) -> None:
        self._store = store
        self.admission = admission
        self._conflicts = conflicts
        self.settings = settings
        self.priority = Priority(int(settings.priority_wait * 1000), conflicts)
        self._kept = KeptResponses(settings.max_idempotency_size)
        for _, key, size in sorted(store.hidden()):
            self._kept.add(key, size)

    # -- reading --

    def read(
        self, context: Context, transaction: Transaction | None, key: bytes, *, value: bool = True
    ) -> bytes | Missing:
        """Return the record of a key; without a transaction, the durable one. Without `value`, it may
        end before its value.

        Raises `RecordDamaged`, `TransactionTooLarge` and `RequestTooExpensive`.
        """
        context.charge(LOOKUP)
        store = self._store
        if transaction is None:
            context.now = min(context.now, store.horizon)
            found = store.durable.find(key, context, value)
            return MISSING if found is MISSING or records.expiry_of(found) <= context.now else found
        entry = transaction.get(key)
        if entry is TOMBSTONE:
            return MISSING
        if entry is not MISSING:
            return MISSING if records.expiry_of(entry) <= context.now else entry
        isolated = transaction.kind is Kind.ISOLATED
        if isolated:
            self._check_size(transaction, len(key))
            # Before the lookup: the error for a damaged record is a read, too.
            self._conflicts.saw_key(transaction, key)
        try:
            record = self._read_staged(context, key, value)
        finally:
            transaction.depend_on(context.depends_on)
        if isolated and record is not MISSING:
            transaction.reads.saw_record(record)
        return record

    def _read_staged(self, context: Context, key: bytes, value: bool) -> bytes | Missing:
        store = self._store
        context.depend_on(store.depends_on(key))
        record = store.staged.find(key, context, value)
        if record is MISSING:
            return MISSING
        expires_at = records.expiry_of(record)
        if expires_at > context.now:
            return record
        self._depend_on_expiry(context, expires_at)
        return MISSING

    def _depend_on_expiry(self, context: Context, expires_at: int) -> None:
        # Readers of the durable state still see the key until all that is staged is durable.
        if expires_at > self._store.horizon:
            context.depend_on(self._store.head)

    def exists(self, context: Context, transaction: Transaction | None, key: bytes) -> bool:
        """Is there a record that a write of `key` would replace? A damaged one counts.

        Without a transaction, a staged one counts, too: writes are decided on staged records.
        """
        try:
            if transaction is None:
                context.charge(LOOKUP)
                return self._read_staged(context, key, value=False) is not MISSING
            return self.read(context, transaction, key, value=False) is not MISSING
        except RecordDamaged:
            return True

    def scan(
        self,
        context: Context,
        transaction: Transaction | None,
        start: bytes,
        end: bytes | None,
        limit: int,
        *,
        room: int,
        work: int,
        reverse: bool = False,
        values: bool = True,
    ) -> Page:
        """Return the records from `start` up to but not including `end` (None: to the last key).

        They are at most `limit`, and about `room` bytes; it walks about `work` units at most. Raises as
        `read`.
        """
        store, before = self._store, context.spent
        context.charge(RANGE)
        # Hidden keys come behind all others.
        end = HIDDEN if end is None else min(end, HIDDEN)
        if transaction is None:
            context.now = min(context.now, store.horizon)
            sources = store.durable.ranges(start, end, reverse, values, context)
        else:
            sources = transaction.ranges(start, end, reverse, context)
            sources += store.staged.ranges(start, end, reverse, values, context)
        items: list[tuple[bytes, bytes]] = []
        last: bytes | None = None
        more, lapsed, work_end = False, 0, context.spent + work
        for key, entry in merge_ranges(sources, reverse):
            if context.spent >= work_end and last is not None:
                more = True
                break
            if entry is not TOMBSTONE:
                expires_at = records.expiry_of(entry)
                if expires_at <= context.now:
                    lapsed = max(lapsed, expires_at)
                else:
                    record = entry if values else records.without_value(entry)
                    room -= len(key) + len(record)
                    if len(items) == limit or (room < 0 and items):
                        more, last = True, items[-1][0]
                        break
                    items.append((key, record))
            last = key
        if more and last is not None:
            # A page that was cut short has not read the keys behind that.
            start, end = (last, end) if reverse else (start, last + b"\0")
        if transaction is not None:
            context.depend_on(store.depends_on_range(start, end, context))
            self._depend_on_expiry(context, lapsed)
            transaction.depend_on(context.depends_on)
            if transaction.kind is Kind.ISOLATED:
                self._saw_range(context, transaction, start, end, items)
        return Page(items, last if more else None, context.spent - before)

    def _saw_range(
        self,
        context: Context,
        transaction: Transaction,
        start: bytes,
        end: bytes,
        items: Iterable[tuple[bytes, bytes]],
    ) -> None:
        context.charge(READ_RANGE)
        self._check_size(transaction, len(start) + len(end))
        self._conflicts.saw_range(transaction, start, end, context)
        for key, record in items:
            if transaction.get(key) is MISSING:
                transaction.reads.saw_record(record)

    # -- writing --

    def write(
        self, context: Context, transaction: Transaction | None, key: bytes, entry: Entry
    ) -> bool:
        """Write a draft or a TOMBSTONE: into a transaction, or, without one, as a revision of its own.

        Without a transaction, return whether the key is new. Raises `StorageFull`, `WritesStalled`,
        `TransactionTooLarge` and `RequestTooExpensive`.
        """
        self.admission.check_write(transaction, key, entry)
        context.charge(WRITE + (0 if entry is TOMBSTONE else len(entry) // BYTES))
        if transaction is not None:
            self._check_size(transaction, len(key) + (0 if entry is TOMBSTONE else len(entry)))
            transaction.put(key, entry)
            return False
        if self.priority.holder is not None:
            self._give_way(context, None, (key,))
        changed = self.stage(context, ((key, entry),))
        record = changed[0][1] if changed else None
        return record is not None and records.created_of(record) == self._store.head

    def commit(self, context: Context, transaction: Transaction) -> Steps[int]:
        """Commit the topmost level of a transaction; return the revision that it made, 0 if none."""
        if transaction.depth == 1 and transaction.overlays[0]:
            self.admission.check_commit(transaction.overlays[0])
        if self.priority.holder is not None and transaction.depth == 1:
            self._give_way(context, transaction, transaction.overlays[0])
        changes = transaction.commit()
        # Its own writes are no conflict for it. Only the outermost level is staged.
        if changes is not None:
            self._conflicts.forget(transaction)
        if not changes:
            return 0
        if transaction.keeps:
            self._make_room(context, changes)
        if len(changes) <= STAGED_PER_STEP:
            return self._store.head if self.stage(context, changes.items()) else 0
        return (yield from self._stage_in_steps(context, changes))

    def _make_room(self, context: Context, changes: Overlay) -> None:
        """Count the responses that a commit keeps; let it forget the oldest ones beyond the limit."""
        for key in sorted(key for key in changes if key >= HIDDEN):
            entry = changes[key]
            if entry is not TOMBSTONE:
                self._kept.add(key, len(entry), context.lease.client.address)
        oldest = self._kept.take_excess(FORGOTTEN_PER_REVISION, context.lease.client.address)
        context.spent += STAGE * len(oldest)
        for key in oldest:
            changes.put(key, TOMBSTONE)

    def sweep(self, context: Context, limit: int) -> bool:
        """Remove expired keys, and kept responses beyond their limit; return whether there may be more.

        It looks at no more than `limit` of each, and makes one revision.
        """
        keys, more = self._store.expired(context.now, limit)
        self._kept.forget(keys)
        oldest = self._kept.take_excess(limit)
        self.stage(context, [(key, TOMBSTONE) for key in keys + oldest])
        return more or len(oldest) == limit

    def _give_way(
        self, context: Context, transaction: Transaction | None, keys: Collection[bytes]
    ) -> None:
        """Raise `MustWait` if a transaction with priority has read any of these keys. A message that
        has waited for it is done, unless it is the commit of an isolated transaction: that conflicts.
        """
        if not self.priority.guards(keys, transaction, context.now):
            return
        if not context.waited_until:
            raise MustWait(context.now + self.priority.wait)
        if transaction is not None and transaction.id is not None:
            self._conflicts.forget(transaction)
            transaction.conflict(0)

    def enter_exclusive(self, context: Context) -> None:
        """From now on nobody else stages, or looks at what is staged, until the message is done. Time
        stands still for it, and what is durable is seen as of now.
        """
        context.exclusive = True
        self._store.hold_time(context.now)

    def leave_exclusive(self) -> None:
        """See `enter_exclusive`."""
        self._store.hold_time(NEVER)

    def _stage_in_steps(self, context: Context, changes: Overlay) -> Steps[int]:
        if not context.exclusive:
            self.enter_exclusive(context)
        store, staging, changed = self._store, Staging(), list[Change]()
        context.limit = UNLIMITED
        items = iter(changes.items())
        # In order, piece by piece: the memtable sorts that faster.
        while piece := sorted(islice(items, STAGED_PER_STEP)):
            really = store.put(piece, context.now, staging)
            changed += really
            if self._conflicts:
                self._invalidate_readers(context, (key for key, _ in really), store.head + 1)
            context.spent += STAGE * len(piece)
            if context.spent >= context.step_end:
                yield
        store.add(staging, changed, context.now)
        if not changed:
            for key in changes:
                context.depend_on(store.depends_on(key))
            return 0
        context.depends_on = store.head
        return store.head

    def stage(self, context: Context, changes: Collection[tuple[bytes, Entry]]) -> list[Change]:
        """Stage changes as one revision, and return those that have an effect.

        Transactions that have read any of it conflict.
        """
        changed = self._store.stage(changes, context.now)
        if changed:
            context.depends_on = self._store.head
            if self._conflicts:
                self._invalidate_readers(context, (key for key, _ in changed), self._store.head)
        else:
            # A deletion that finds nothing depends on the deletion before it.
            for key, _ in changes:
                context.depend_on(self._store.depends_on(key))
        return changed

    def _invalidate_readers(self, context: Context, keys: Iterable[bytes], revision: int) -> None:
        for key in keys:
            for reader in self._conflicts.readers_of(key):
                context.spent += CONFLICT  # not refused any more: the write is staged
                self._conflicts.forget(reader)
                reader.conflict(revision)

    # -- limits --

    def check_key(self, key: bytes) -> None:
        """Raise `InvalidKey` unless a key has 1 to `max_key_size` bytes."""
        if not 0 < len(key) <= self.settings.max_key_size:
            raise InvalidKey(
                f"A key has 1 to {self.settings.max_key_size} bytes in UTF-8, not {len(key)}."
            )

    def check_value(self, value: bytes) -> None:
        """Raise `ValueTooLarge` if a value has more than `max_value_size` bytes."""
        if len(value) > self.settings.max_value_size:
            raise ValueTooLarge(f"A value has at most {self.settings.max_value_size} bytes.")

    def _check_size(self, transaction: Transaction, more: int) -> None:
        size = transaction.size + more
        if size > self.settings.max_transaction_size:
            raise TransactionTooLarge(
                f"A transaction holds at most {self.settings.max_transaction_size} bytes of writes and "
                "reads (max_transaction_size). This request was not done. The transaction goes on "
                "without it, if it was open: roll it back, or do less in it."
            )
        transaction.lease.resize(size)
