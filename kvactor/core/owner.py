"""The owner: takes messages in order, answers them, and writes their changes to disk.

The owner is given drains: a reading of the clock, and the messages that were waiting. It handles them
in order, and then hands what it staged to the journal. The same drains always give the same replies and
the same journal (P9): there is no clock, no randomness and no event loop in here.

The rule for replies (P3): all that an answer depends on is durable before it goes out. Each message has
a `Context`, in which its handler notes the newest revision that the answer depends on: a write its
own, a read the staged one that it has seen. The answer, a value or an error, is held until
that revision is durable.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from kvactor.core.admission import Admission
from kvactor.core.conflicts import ConflictIndex
from kvactor.core.context import Context
from kvactor.core.executor import Executor
from kvactor.core.feed import Feed, Waiting, size_of
from kvactor.core.keyspace import Keyspace
from kvactor.core.memory import SMALL, Lease
from kvactor.core.messages import (
    Answer,
    Batch,
    Begin,
    Changes,
    Commit,
    Continue,
    Drop,
    Execute,
    Flushed,
    Folded,
    Forgot,
    HistoryRead,
    Inspect,
    Message,
    Open,
    Rollback,
    Status,
    StatusReport,
    Stop,
    Sweep,
    Tick,
)
from kvactor.core.protocols import Journal, StorageFailed, Tree
from kvactor.core.records import Revision
from kvactor.core.replies import HeldReplies, ReplyTo, deliver
from kvactor.core.scheduler import Envelope, Handler, Scheduler
from kvactor.core.space import FreeSpace
from kvactor.core.store import Store
from kvactor.core.transaction import Transaction
from kvactor.core.transaction_manager import TransactionManager
from kvactor.core.work import FOLLOW
from kvactor.core.writer import Writer, read_space
from kvactor.errors import DataDamaged, KvactorError
from kvactor.settings import Settings

#: Expired keys that one sweep removes, in one revision. The next sweep waits until it is durable.
SWEEP_LIMIT = 250


class Deferred(Enum):
    """Why there is no answer to `Changes` yet."""

    #: there is no newer revision
    WAITS = "waits"
    #: the journal has to be asked
    READ_JOURNAL = "read journal"


#: Entries of the read sets of ended transactions that one drain takes out of the index, at most: about
#: half a millisecond.
CLEANED_PER_DRAIN = 400


class Owner:
    """The owner of a journal and a tree. `post` may be called from any thread: the owner is given the
    message later.

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
        self._now = 0
        self._stopping = False
        #: whether it stops once everything that was accepted is handled
        self._stops = False
        #: whether there is more to sweep, and whether a message to do it is on its way
        self._sweeping = self._sweep_posted = False
        #: whether a `Continue` is on its way
        self._continuing = False
        self._store = Store(tree)
        self._store.recover(journal.replay(tree.applied))
        self._conflicts = conflicts = ConflictIndex[Transaction]()
        self.admission = Admission(self._store, settings, self.free_space())
        self._keys = keys = Keyspace(self._store, conflicts, settings, self.admission)
        self._transactions = transactions = TransactionManager(keys, conflicts, settings)
        executor = Executor(keys, transactions, settings)
        self._feed = Feed(journal)
        self.held = HeldReplies()
        self.writer = Writer(self._store, journal, tree, self.admission, settings, post)
        handlers: dict[type, Handler] = {
            Execute: executor.execute,
            Batch: executor.batch,
            Open: transactions.open,
            Inspect: transactions.inspect,
            Begin: transactions.begin,
            Rollback: transactions.rollback,
            Commit: transactions.commit,
            Drop: transactions.drop,
            Changes: self._changes,
            Status: self._status,
            Flushed: self._flushed,
            Folded: self._folded,
            Forgot: self._forgot,
            HistoryRead: self._history_read,
            Tick: self._tick,
            Sweep: self._sweep,
            Continue: self._continue,
            Stop: self._stop,
        }
        self.scheduler = Scheduler(handlers, self._answer, keys, settings.max_request_work)

    # -- for the actor --

    @property
    def revision(self) -> int:
        """The newest durable revision."""
        return self._store.revision

    @property
    def finished(self) -> bool:
        """Has it been told to stop, and is everything answered, flushed and folded?"""
        return (
            self._stopping
            and not self.scheduler.backlog
            and self.writer.idle
            and not self._feed.reading
        )

    def free_space(self) -> FreeSpace:
        """Read the free space. Any thread may call it. Raises `OSError` if the disk does not say."""
        return read_space(self._journal, self._tree)

    def fail(self, error: KvactorError) -> None:
        """Answer every waiting request with `error`, after a drain has raised."""
        self.held.fail(error)
        for _, reply, _ in (*self.scheduler.take_all(), *self._feed.abandoned()):
            if reply is not None:
                deliver(reply, error)

    def drain(self, now: int, envelopes: Sequence[Envelope]) -> None:
        """Handle messages in order, then hand what was staged to the journal if it is free.

        `now` is in milliseconds since the epoch; when the clock was set back, time stands still
        until it has caught up. Any exception leaves the owner in an unknown state: the caller must end
        the process (P10).
        """
        self._now = max(now, self._now)
        more = self.scheduler.run(self._now, envelopes)
        if self._stops and not self.scheduler.backlog:
            self._end()
        self.writer.write(last=self._stopping and not self.scheduler.backlog)
        if self._conflicts.garbage_size and self._conflicts.clean(CLEANED_PER_DRAIN):
            more = True
        if more and not self._continuing:
            self._continuing = True
            self._post(Continue())

    # -- answers --

    def _answer(
        self, context: Context, message: Message[Any], reply: ReplyTo, lease: Lease, result: Any
    ) -> None:
        """Answer a message with its result or its error."""
        if isinstance(result, KvactorError):
            self._answer_error(context, reply, result)
            return
        if isinstance(result, Deferred) and isinstance(message, Changes):
            self._defer(result, (message, reply, lease))
            return
        durable = self._store.revision
        if context.depends_on <= durable:
            deliver(reply, Answer(durable, result, context.now))
        else:
            answer = Answer(context.depends_on, result, context.now)
            self.held.hold(context.depends_on, reply, answer)

    def _answer_error(self, context: Context, reply: ReplyTo, error: KvactorError) -> None:
        # The frames of an outcome lead to its request, and from there to the outcome again.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        depends_on = max(context.depends_on, error.depends_on)
        error.revision, error.time = max(depends_on, self._store.revision), context.now
        if depends_on > self._store.revision:
            self.held.hold(depends_on, reply, error)
        else:
            deliver(reply, error)

    # -- the feed --

    def _changes(self, context: Context, message: Changes) -> list[Revision] | Deferred:
        context.charge(FOLLOW)
        found = self._feed.read(message.after, message.limit, self._store.revision)
        if found is None:
            return Deferred.READ_JOURNAL
        return Deferred.WAITS if message.wait and not found and not self._stopping else found

    def _defer(self, why: Deferred, reader: Waiting) -> None:
        if why is Deferred.WAITS:
            self._feed.wait(reader)
        else:
            self._feed.ask_journal(reader, self._post)

    def _history_read(self, context: Context, message: HistoryRead) -> None:
        if message.error is not None and not isinstance(message.error, DataDamaged):
            raise StorageFailed("the journal cannot be read") from message.error
        size = sum(map(size_of, message.revisions))
        for asked, reply, lease in self._feed.readers(message.since):
            try:
                found = self._feed.history(message, asked.limit, self._store.revision)
                if size > SMALL:
                    lease.acquire(size)
            except KvactorError as error:
                self._answer_error(context, reply, error)
            else:
                deliver(reply, Answer(self._store.revision, found, context.now))

    # -- the owner's own messages --

    def _status(self, context: Context, _: Status) -> StatusReport:
        store, shared = self._store, self._transactions.shared
        return StatusReport(
            keys=store.keys,
            staged=store.pending,
            held=len(self.held),
            transactions=len(self._transactions.isolated),
            shared_depth=shared.depth if shared else 0,
            shared_age=context.now - shared.opened_at if shared else 0,
            memtable_keys=len(store.memtable),
            memtable_bytes=store.memtable.size,
            folded=store.folded,
            free_space=self.admission.left,
            stalled=self.admission.stalled,
        )

    def _flushed(self, _: Context, message: Flushed) -> None:
        revisions = self.writer.flushed(message)
        self.held.release(message.revision)
        self.scheduler.take(self._feed.publish(revisions))
        if self._sweeping:
            self._sweep_on()

    def _folded(self, _: Context, message: Folded) -> None:
        self.writer.folded(message)

    def _forgot(self, _: Context, message: Forgot) -> None:
        self.writer.forgot(message)

    def _tick(self, context: Context, message: Tick) -> None:
        self.writer.tick(message.free_space)
        self._transactions.sweep(context.now)
        self._feed.sweep()
        if not self._sweeping and not self.scheduler.must_wait(Sweep()):
            self._sweep(context)

    def _sweep(self, context: Context, _: Sweep | None = None) -> None:
        self._sweeping = self._sweep_posted = False
        admission = self.admission
        if self._stopping or admission.stalled or not admission.has_reserve(0, SWEEP_LIMIT):
            return
        self._sweeping = self._keys.sweep(context, SWEEP_LIMIT)
        if not self._store.pending:
            self._sweep_on()

    def _sweep_on(self) -> None:
        """Go on with a sweep, between other messages."""
        if self._sweeping and not self._sweep_posted:
            self._sweep_posted = True
            self._post(Sweep())

    def _continue(self, _: Context, __: Continue) -> None:
        # It has begun a drain, which takes the next step and the next turns.
        self._continuing = False

    def _stop(self, _: Context, __: Stop) -> None:
        # What was accepted before is handled first.
        self._stops = True
        self._keys.priority.stop()

    def _end(self) -> None:
        self._stops, self._stopping = False, True
        self.writer.stop()
        self._transactions.stop()
        self.scheduler.take(self._feed.release())
