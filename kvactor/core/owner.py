"""What each message does: the one place where the data changes. Pure and synchronous: no clock, no
randomness, no asyncio.

The owner is given drains: a reading of the clock, and the messages that were waiting. It handles
them in order, and then hands what it staged to the journal. The same drains always give the same
replies and the same journal (promise P9).

The rule for replies (P3): whatever an answer rests on has to be durable before it goes out. A
handler notes in `Access.depends_on` the newest revision that its answer depends on: a write on its
own, a read on what it found staged. If that revision is not durable yet, the answer is held back until
it is, be it a value or an error.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final

from kvactor.core.access import Access
from kvactor.core.feed import Feed
from kvactor.core.messages import (
    Answer,
    Batch,
    Begin,
    Changes,
    Commit,
    Delete,
    DeleteRange,
    Drop,
    Flushed,
    Folded,
    Get,
    Inspect,
    Message,
    Open,
    Range,
    Rollback,
    Set,
    Status,
    StatusReport,
    Stop,
    Tick,
    TransactionState,
)
from kvactor.core.operations import Operations
from kvactor.core.protocols import Journal, StorageFailed, Tree
from kvactor.core.records import TOMBSTONE, Revision
from kvactor.core.replies import HeldReplies, Outcome, ReplyTo, deliver
from kvactor.core.sessions import Sessions
from kvactor.core.store import Store
from kvactor.core.transactions import Transaction
from kvactor.errors import DataDamaged, KvactorError, NoTransaction
from kvactor.settings import Settings

log = logging.getLogger(__name__)

#: How often a memtable may be overwritten before it is folded, lest the journal grows for ever.
MAX_REWRITES = 8

#: Expired keys that one sweep removes, in one revision.
SWEEP_LIMIT = 1000


class Deferred(Enum):
    """The answer comes when there is more in the feed."""

    DEFERRED = "later"


DEFERRED: Final = Deferred.DEFERRED

#: A message, and where its answer goes; None for the owner's own news.
Envelope = tuple[Message[Any], ReplyTo | None]


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
        self._access = Access(self._store, self._sessions, settings, self.free_space())
        operations = Operations(self._access, self._store, settings)
        self._feed = Feed(journal)
        self._stopping = False
        self.held = HeldReplies()
        self._handlers: dict[type, Callable[[Any], Any]] = {
            Get: operations.get,
            Set: operations.set,
            Delete: operations.delete,
            Range: operations.range,
            DeleteRange: operations.delete_range,
            Batch: operations.batch,
            Changes: self._changes,
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

    def fail(self, error: KvactorError) -> None:
        """Give everyone who waits `error`: a drain has raised."""
        self.held.fail(error)
        for _, reply in self._feed.release():
            deliver(reply, error)

    # -- drains --

    def drain(self, now: int, envelopes: Sequence[Envelope]) -> None:
        """Handle messages in order, then hand what was staged to the journal if it is free.

        `now` is in milliseconds since the epoch; when the clock was set back, time stands still
        until it has caught up. Any exception leaves the owner in an unknown state: whoever called
        must end the process (P10).
        """
        self._access.now = max(now, self._access.now)
        self._handle_all(envelopes)
        store = self._store
        if store.staging and not store.flushing:
            self._flush()
        limit = self._settings.memtable_size
        full = store.memtable.size >= limit or store.memtable.grown >= limit * MAX_REWRITES
        if store.memtable and not store.folding and (full or self._stopping):
            self._fold()

    def _handle_all(self, envelopes: Iterable[Envelope]) -> None:
        for message, reply in envelopes:
            self._handle(message, reply)

    def _handle(self, message: Message[Any], reply: ReplyTo | None) -> None:
        access = self._access
        access.depends_on = 0
        revision = durable = self._store.revision
        outcome: Outcome
        try:
            result = self._handlers[type(message)](message)
            if reply is None:
                return
            if result is DEFERRED:
                self._feed.wait(message, reply)
                return
            if access.depends_on > durable:
                revision = access.depends_on
            outcome = Answer(revision, result)
        except KvactorError as error:
            if reply is None:
                return
            revision = error.revision = max(access.depends_on, error.depends_on, durable)
            outcome = error
        if revision > durable:
            self.held.hold(revision, reply, outcome)
        else:
            deliver(reply, outcome)

    # -- transactions --

    def _open(self, message: Open) -> TransactionState:
        return _state(self._sessions.open(message.id, message.idle_timeout, self._access.now))

    def _inspect(self, message: Inspect) -> TransactionState:
        transaction = self._access.transaction(message.within)
        if transaction is None:
            raise NoTransaction("No transaction is open")
        return _state(transaction)

    def _begin(self, message: Begin) -> TransactionState:
        return _state(self._sessions.begin(message.within, self._access.now))

    def _rollback(self, message: Rollback) -> TransactionState:
        return _state(self._sessions.rollback(message.within, self._access.now, whole=False))

    def _drop(self, message: Drop) -> TransactionState:
        return _state(self._sessions.rollback(message.within, self._access.now, whole=True))

    def _commit(self, message: Commit) -> TransactionState:
        repeated = self._sessions.committed(message.within)
        if repeated is not None and isinstance(message.within, str):
            self._access.depends_on = repeated
            return TransactionState(message.within, 0)
        transaction = self._sessions.to_commit(message.within, self._access.now)
        if transaction.depth == 1 and transaction.overlays[0]:
            self._access.check_space()
        changes = transaction.commit()
        if changes is not None:
            # What it told its client has to be durable before it may say that all went well.
            self._access.depends_on = transaction.depends_on
            # Its own writes do not doom it, so it leaves the readers first.
            self._sessions.readers.forget(transaction)
            self._access.stage(changes.items())
            transaction.depends_on = self._access.depends_on
            self._sessions.end(transaction, committed=True)
        return _state(transaction)

    # -- the feed --

    def _changes(self, message: Changes) -> list[Revision] | Deferred:
        found = self._feed.read(message.since, message.limit, self._store.revision)
        return DEFERRED if message.wait and not found and not self._stopping else found

    # -- the owner's own news --

    def _status(self, _: Status) -> StatusReport:
        store, shared = self._store, self._sessions.shared
        return StatusReport(
            keys=store.keys,
            staged=store.pending,
            held=len(self.held),
            transactions=len(self._sessions.isolated),
            shared_depth=shared.depth if shared else 0,
            shared_age=self._access.now - shared.opened_at if shared else 0,
            memtable_keys=len(store.memtable),
            memtable_bytes=store.memtable.size,
            folded=store.folded,
            free_space=self._access.free_space,
        )

    def _flush(self) -> None:
        journal, post = self._journal, self._post
        # Until the next tick reads it anew: what is written goes into the journal and into the tree.
        self._access.free_space -= 2 * self._store.staging
        revisions = self._store.seal()
        head = revisions[-1].number
        journal.trim(max(0, min(self._store.folded, head - self._settings.history)) + 1)
        journal.append(revisions, lambda error: post(Flushed(head, error)))

    def _flushed(self, message: Flushed) -> None:
        if message.error is not None:
            raise StorageFailed(
                f"the journal could not flush up to revision {message.revision}"
            ) from message.error
        revisions = self._store.apply()
        self.held.release(message.revision)
        self._handle_all(self._feed.publish(revisions))

    def _fold(self) -> None:
        post = self._post
        self._tree.fold(self._store.freeze(), self._store.revision, lambda error: post(Folded(error)))

    def _folded(self, message: Folded) -> None:
        if message.error is not None:
            raise StorageFailed("the tree could not fold the journal in") from message.error
        self._store.drop_frozen()

    def _tick(self, message: Tick) -> None:
        if message.free_space is not None:
            self._access.free_space = message.free_space
        self._sessions.sweep(self._access.now)
        self._feed.sweep()
        if self._access.free_space < self._settings.min_free_space:
            return
        keys, more = self._store.expired(self._access.now, SWEEP_LIMIT)
        self._access.stage([(key, TOMBSTONE) for key in keys])
        if more:
            self._post(message)

    def _stop(self, _: Stop) -> None:
        self._stopping = True
        if (shared := self._sessions.shared) is not None:
            depth = shared.depth
            self._sessions.end(shared)
            log.warning("the shared transaction was open at depth %d and has been rolled back", depth)
        self._handle_all(self._feed.release())


def _state(transaction: Transaction) -> TransactionState:
    if not transaction.depth:
        return TransactionState(transaction.id, 0)
    return TransactionState(transaction.id, transaction.depth, transaction.expires_at)
