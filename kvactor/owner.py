"""What each message does: the one place where the data changes. Pure and synchronous: no clock, no
randomness, no asyncio.

The owner is given drains: a reading of the clock, and the messages that were waiting. It handles
them in order, and then hands what it staged to the journal. The same drains always give the same
replies and the same journal (promise P9).

The rule for replies (P3): whatever an answer rests on has to be durable before it goes out. A
handler notes in `_rests_on` the newest revision that its answer depends on: a write on its own, a
read on what it found staged. If that revision is not durable yet, the answer is held back until it
is, be it a value or an error.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from kvactor import records
from kvactor.errors import (
    DataDamaged,
    InvalidKey,
    InvalidRequest,
    KeyNotFound,
    KvactorError,
    NoTransaction,
    StorageFull,
    TransactionTooLarge,
    ValueTooLarge,
)
from kvactor.messages import (
    Answer,
    Begin,
    Commit,
    Delete,
    Drop,
    Flushed,
    Folded,
    Get,
    Inspect,
    Message,
    Open,
    Page,
    Range,
    Rollback,
    Set,
    Status,
    StatusReport,
    Stop,
    Tick,
    TransactionState,
)
from kvactor.records import MISSING, NEVER, TOMBSTONE, Entry, Missing
from kvactor.replies import HeldReplies, Outcome, Reply, deliver
from kvactor.sessions import Sessions
from kvactor.settings import Settings
from kvactor.storage import Journal, StorageFailed, Tree
from kvactor.store import Store, alive
from kvactor.transactions import Transaction, merge_ranges

#: Expired keys that one sweep removes, in one revision.
SWEEP_LIMIT = 1000


#: A message, and where its answer goes; None for the owner's own news.
Envelope = tuple[Message[Any], Reply | None]


class Owner:
    """The owner of a journal and a tree. Through `post` come, from any thread, messages that it is
    to be given later.

    Raises `DataDamaged` if the journal and the tree do not fit each other.
    """

    def __init__(
        self, journal: Journal, tree: Tree, settings: Settings, post: Callable[[Message[Any]], None]
    ) -> None:
        self._journal = journal
        self._tree = tree
        self._settings = settings
        self._post = post
        if journal.head() < tree.applied:
            raise DataDamaged(
                f"The tree is at revision {tree.applied}, but the journal ends at {journal.head()}: "
                "part of it is lost."
            )
        self._store = Store(tree)
        self._store.recover(journal.replay(tree.applied))
        self._sessions = Sessions(settings)
        self._now = 0
        self._free_space = self.free_space()
        self._stopping = False
        self._rests_on = 0
        self.held = HeldReplies()
        self._handlers: dict[type, Callable[[Any], Any]] = {
            Get: self._get,
            Set: self._set,
            Delete: self._delete,
            Range: self._range,
            Open: self._open,
            Inspect: self._inspect,
            Begin: self._begin,
            Rollback: self._rollback,
            Commit: self._commit,
            Drop: self._drop,
            Status: self._status,
            Flushed: self._flushed,
            Folded: self._folded,
            Tick: self._tick,
            Stop: self._stop,
        }

    # -- what the actor asks --

    @property
    def revision(self) -> int:
        """The newest durable revision."""
        return self._store.revision

    @property
    def finished(self) -> bool:
        """Has it been told to stop, and is everything flushed and folded?"""
        store = self._store
        return self._stopping and not (store.pending or store.folding or store.memtable)

    @property
    def behind(self) -> bool:
        """Is the memtable full again before the last one is folded?"""
        return self._store.folding and self._store.memtable.size >= self._settings.memtable_size

    def free_space(self) -> int:
        """Return how many bytes can be written, by the disk's account."""
        return min(self._journal.free_space(), self._tree.free_space())

    # -- drains --

    def drain(self, now: int, envelopes: Sequence[Envelope]) -> None:
        """Handle messages in order, then hand what was staged to the journal if it is free.

        `now` is in milliseconds since the epoch; when the clock was set back, time stands still
        until it has caught up. Any exception leaves the owner in an unknown state: whoever called
        must end the process (P10).
        """
        self._now = max(now, self._now)
        for message, reply in envelopes:
            self._handle(message, reply)
        store = self._store
        if store.staging and not store.flushing:
            self._flush()
        full = store.memtable.size >= self._settings.memtable_size
        if store.memtable and not store.folding and (full or self._stopping):
            self._fold()

    def _handle(self, message: Message[Any], reply: Reply | None) -> None:
        self._rests_on = 0
        outcome: Outcome
        try:
            result = self._handlers[type(message)](message)
            revision = max(self._rests_on, self._store.revision)
            outcome = Answer(revision, result)
        except KvactorError as error:
            revision = max(self._rests_on, error.rests_on, self._store.revision)
            error.revision = revision
            outcome = error
        if reply is None:
            return
        if revision > self._store.revision:
            self.held.hold(revision, reply, outcome)
        else:
            deliver(reply, outcome)

    # -- reading --

    def _get(self, message: Get) -> bytes:
        self._check_key(message.key)
        transaction = self._sessions.use(message.within, self._now)
        if transaction is None:
            record = self._store.durable.get(message.key, self._now)
        else:
            record = self._read(transaction, message.key)
        if record is MISSING:
            raise KeyNotFound("Key not found")
        return record

    def _read(self, transaction: Transaction, key: bytes) -> bytes | Missing:
        entry = transaction.get(key)
        if entry is TOMBSTONE:
            return MISSING
        if entry is not MISSING:
            return MISSING if records.expiry_of(entry) <= self._now else entry
        self._depend(transaction, self._store.rests_on(key))
        record = self._store.staged.get(key, self._now)
        if transaction.id is not None:
            self._check_size(transaction, len(key))
            self._sessions.readers.saw_key(transaction, key)
            if record is not MISSING:
                transaction.reads.saw_record(record)
        return record

    def _range(self, message: Range) -> Page:
        start, end, reverse = message.start, message.end, message.reverse
        if message.limit < 1:
            raise InvalidRequest("A limit is at least 1.")
        transaction = self._sessions.use(message.within, self._now)
        if transaction is None:
            sources = self._store.durable.ranges(start, end, reverse)
        else:
            sources = transaction.ranges(start, end, reverse) + self._store.staged.ranges(
                start, end, reverse
            )
        items = list(islice(alive(merge_ranges(sources, reverse), self._now), message.limit + 1))
        more = len(items) > message.limit
        if more:
            # Nothing is said of what lies beyond the last item, and so nothing was read there.
            items.pop()
            last = items[-1][0]
            start, end = (last, end) if reverse else (start, last + b"\0")
        if transaction is not None:
            self._depend(transaction, self._store.rests_on_range(start, end))
            if transaction.id is not None:
                self._check_size(transaction, len(start) + len(end or b""))
                self._sessions.readers.saw_range(transaction, start, end)
                for key, record in items:
                    if transaction.get(key) is MISSING:
                        transaction.reads.saw_record(record)
        return Page(items, more)

    def _depend(self, transaction: Transaction, revision: int) -> None:
        self._rests_on = max(self._rests_on, revision)
        transaction.rests_on = max(transaction.rests_on, revision)

    # -- writing --

    def _set(self, message: Set) -> None:
        self._check_key(message.key)
        if len(message.value) > self._settings.max_value_size:
            raise ValueTooLarge(f"A value has at most {self._settings.max_value_size} bytes.")
        expires_at = NEVER if message.ttl is None else self._now + message.ttl
        draft = records.encode(message.key, message.value, message.content_type, expires_at)
        self._write(self._sessions.use(message.within, self._now), message.key, draft)

    def _delete(self, message: Delete) -> None:
        key = message.key
        self._check_key(key)
        transaction = self._sessions.use(message.within, self._now)
        if transaction is None:
            self._rests_on = self._store.rests_on(key)
            record = self._store.standing(key)
            gone = record is MISSING or records.expiry_of(record) <= self._now
        else:
            gone = self._read(transaction, key) is MISSING
        if gone:
            raise KeyNotFound("Key not found")
        self._write(transaction, key, TOMBSTONE)

    def _write(self, transaction: Transaction | None, key: bytes, entry: Entry) -> None:
        self._check_space()
        if transaction is None:
            self._stage([(key, entry)])
        else:
            self._check_size(transaction, len(key) + (0 if entry is TOMBSTONE else len(entry)))
            transaction.put(key, entry)

    def _stage(self, changes: Sequence[tuple[bytes, Entry]]) -> None:
        changed = self._store.stage(changes, self._now)
        self._sessions.wrote(changed, self._store.head)
        if changed:
            self._rests_on = self._store.head

    # -- limits --

    def _check_key(self, key: bytes) -> None:
        if not 0 < len(key) <= self._settings.max_key_size:
            raise InvalidKey(
                f"A key has 1 to {self._settings.max_key_size} bytes in UTF-8, not {len(key)}."
            )

    def _check_space(self) -> None:
        if self._free_space < self._settings.min_free_space:
            raise StorageFull(
                f"Only {self._free_space} bytes are free where the data is, under the floor of "
                f"{self._settings.min_free_space}. Writes are refused until there is more; reads go on."
            )

    def _check_size(self, transaction: Transaction, more: int) -> None:
        if transaction.size + more > self._settings.max_transaction_size:
            raise TransactionTooLarge(
                f"A transaction holds at most {self._settings.max_transaction_size} bytes of "
                "writes and reads."
            )

    # -- transactions --

    def _open(self, message: Open) -> TransactionState:
        return _state(self._sessions.open(message.id, message.idle_timeout, self._now))

    def _inspect(self, message: Inspect) -> TransactionState:
        transaction = self._sessions.use(message.within, self._now)
        if transaction is None:
            raise NoTransaction("No transaction is open")
        return _state(transaction)

    def _begin(self, message: Begin) -> TransactionState:
        return _state(self._sessions.begin(message.within, self._now))

    def _rollback(self, message: Rollback) -> TransactionState:
        return _state(self._sessions.rollback(message.within, self._now, whole=False))

    def _drop(self, message: Drop) -> TransactionState:
        return _state(self._sessions.rollback(message.within, self._now, whole=True))

    def _commit(self, message: Commit) -> TransactionState:
        repeated = self._sessions.committed(message.within)
        if repeated is not None and isinstance(message.within, str):
            self._rests_on = repeated
            return TransactionState(message.within, 0)
        transaction = self._sessions.to_commit(message.within, self._now)
        if transaction.depth == 1 and transaction.overlays[0]:
            self._check_space()
        changes = transaction.commit()
        if changes is not None:
            # What it told its client has to be durable before it may say that all went well.
            self._rests_on = transaction.rests_on
            # Its own writes do not doom it, so it leaves the readers first.
            self._sessions.readers.forget(transaction)
            self._stage(list(changes.items()))
            transaction.rests_on = self._rests_on
            self._sessions.end(transaction, committed=True)
        return _state(transaction)

    # -- the owner's own news --

    def _status(self, _: Status) -> StatusReport:
        store, shared = self._store, self._sessions.shared
        return StatusReport(
            keys=store.keys,
            staged=store.pending,
            held=len(self.held),
            transactions=len(self._sessions.isolated),
            shared_depth=shared.depth if shared else 0,
            shared_age=self._now - shared.opened_at if shared else 0,
            memtable_keys=len(store.memtable),
            memtable_bytes=store.memtable.size,
            folded=store.folded,
            free_space=self._free_space,
        )

    def _flush(self) -> None:
        journal, post = self._journal, self._post
        # Until the next tick reads it anew: what is written goes into the journal and into the tree.
        self._free_space -= 2 * self._store.staging
        revisions = self._store.seal()
        head = revisions[-1].number
        journal.trim(max(0, min(self._store.folded, head - self._settings.history)) + 1)
        journal.append(revisions, lambda error: post(Flushed(head, error)))

    def _flushed(self, message: Flushed) -> None:
        if message.error is not None:
            raise StorageFailed(
                f"the journal could not flush up to revision {message.revision}"
            ) from message.error
        self._store.apply()
        self.held.release(message.revision)

    def _fold(self) -> None:
        post = self._post
        self._tree.fold(self._store.freeze(), self._store.revision, lambda error: post(Folded(error)))

    def _folded(self, message: Folded) -> None:
        if message.error is not None:
            raise StorageFailed("the tree could not fold the journal in") from message.error
        self._store.thaw()

    def _tick(self, message: Tick) -> None:
        self._free_space = message.free_space
        self._sessions.sweep(self._now)
        if self._free_space < self._settings.min_free_space:
            return
        keys, more = self._store.expired(self._now, SWEEP_LIMIT)
        self._stage([(key, TOMBSTONE) for key in keys])
        if more:
            self._post(message)

    def _stop(self, _: Stop) -> None:
        self._stopping = True


def _state(transaction: Transaction) -> TransactionState:
    if not transaction.depth:
        return TransactionState(transaction.id, 0)
    return TransactionState(transaction.id, transaction.depth, transaction.expires_at)
