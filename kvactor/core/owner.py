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
from types import GeneratorType
from typing import Any

import msgspec

from kvactor.core.conflicts import ConflictIndex
from kvactor.core.executor import Executor
from kvactor.core.feed import Feed, Waiting, size_of
from kvactor.core.keyspace import Context, Keyspace
from kvactor.core.memory import SMALL, Lease
from kvactor.core.messages import (
    AUTOCOMMIT,
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
    is_long,
    reads_staged,
)
from kvactor.core.priority import MustWait
from kvactor.core.protocols import Journal, StorageFailed, Tree
from kvactor.core.records import NEVER, Revision
from kvactor.core.replies import HeldReplies, ReplyTo, deliver
from kvactor.core.space import FreeSpace
from kvactor.core.store import Store
from kvactor.core.transaction import Transaction
from kvactor.core.transaction_manager import TransactionManager
from kvactor.core.turns import FlowKey, Turns
from kvactor.core.work import FOLLOW, STEP_SIZE, UNLIMITED, Steps
from kvactor.errors import DataDamaged, KvactorError
from kvactor.settings import Settings

#: How often a memtable may be overwritten before it is folded. This bounds the journal.
MAX_REWRITES = 8

#: Expired keys that one sweep removes, in one revision.
SWEEP_LIMIT = 1000


class Deferred(Enum):
    """Why there is no answer to `Changes` yet."""

    #: there is no newer revision
    WAITS = "waits"
    #: the journal has to be asked
    READ_JOURNAL = "read journal"


#: Units of work of one drain, about: then the actor looks for new messages, and continues.
DRAIN_SIZE = 5000

#: Entries of the read sets of ended transactions that one drain takes out of the index, at most: about
#: half a millisecond.
CLEANED_PER_DRAIN = 400

#: A message, where its answer goes (None for the owner's own messages), and what the answer holds.
Envelope = tuple[Message[Any], ReplyTo | None, Lease]


#: A message that waits, and the time until which it may wait for a transaction with priority; 0: it has
#: not waited for one.
_Waiting = tuple[Envelope, int]


class _Running(msgspec.Struct, gc=False):
    """A message that takes several steps, and is under way."""

    envelope: Envelope
    context: Context
    steps: Steps[Any]

    @property
    def message(self) -> Message[Any]:
        return self.envelope[0]


def _flow(envelope: Envelope) -> FlowKey:
    return envelope[2].client, is_long(envelope[0])


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
        #: whether a sweep goes on with its next message
        self._sweeping = False
        #: whether the journal forgets history
        self._forgetting = False
        #: what it was last allowed to forget, and has forgotten
        self._forgotten = (0, 0, 0)
        #: messages that wait for their turn
        self._turns = Turns[_Waiting]()
        self._running: _Running | None = None
        #: messages that wait for the one that is under way
        self._behind: list[_Waiting] = []
        #: messages that wait for the transaction with priority, in the order in which they came
        self._parked: list[_Waiting] = []
        #: units of work of this drain
        self._spent = 0
        #: whether a `Continue` is on its way
        self._continuing = False
        self._store = Store(tree)
        self._store.recover(journal.replay(tree.applied))
        self._conflicts = conflicts = ConflictIndex[Transaction]()
        self._keys = keys = Keyspace(self._store, conflicts, settings, self.free_space())
        self._transactions = transactions = TransactionManager(keys, conflicts, settings)
        executor = Executor(keys, transactions, settings)
        self._feed = Feed(journal)
        self.held = HeldReplies()
        self._handlers: dict[type, Callable[[Context, Any], Any]] = {
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

    # -- for the actor --

    @property
    def revision(self) -> int:
        """The newest durable revision."""
        return self._store.revision

    @property
    def finished(self) -> bool:
        """Has it been told to stop, and is everything answered, flushed and folded?"""
        if not self._stopping or self.backlog or self._forgetting:
            return False
        store = self._store
        return not (store.pending or store.folding or store.memtable or self._feed.reading)

    @property
    def behind(self) -> bool:
        """Is the memtable full again before the last one is folded?"""
        return self._store.folding and self._store.memtable.size >= self._settings.memtable_size

    def free_space(self) -> FreeSpace:
        """Read the free space. Any thread may call it. Raises `OSError` if the disk does not say."""
        journal, tree = self._journal, self._tree
        disk = min(journal.free_space(), tree.free_space())
        return FreeSpace(disk, journal.reusable(), tree.reusable())

    def fail(self, error: KvactorError) -> None:
        """Answer every waiting request with `error`, after a drain has raised."""
        self.held.fail(error)
        waiting = [one for one, _ in (*self._turns.take_all(), *self._behind, *self._parked)]
        if self._running is not None:
            waiting.append(self._running.envelope)
        for _, reply, _ in (*waiting, *self._feed.abandoned()):
            if reply is not None:
                deliver(reply, error)

    # -- drains --

    def drain(self, now: int, envelopes: Sequence[Envelope]) -> None:
        """Handle messages in order, then hand what was staged to the journal if it is free.

        `now` is in milliseconds since the epoch; when the clock was set back, time stands still
        until it has caught up. Any exception leaves the owner in an unknown state: the caller must end
        the process (P10).
        """
        self._now = max(now, self._now)
        if self._running is not None:
            self._step(self._running)
        # Of the messages; the one that is under way has had its step.
        self._spent = 0
        for envelope in envelopes:
            self._take(envelope)
        if self._parked:
            self._unpark()
        while self._turns and self._spent < DRAIN_SIZE:
            self._handle(*self._turns.next())
        self._write()
        dirty = self._conflicts.clean(CLEANED_PER_DRAIN)
        if (self._turns or self._running is not None or dirty) and not self._continuing:
            self._continuing = True
            self._post(Continue())

    def _write(self) -> None:
        store = self._store
        if store.staging and not store.flushing:
            self._flush()
        limit, memtable = self._settings.memtable_size, store.memtable
        space = self._keys.space
        rewrites = 1 if space.low else MAX_REWRITES
        full = memtable.size >= limit or memtable.grown >= limit * rewrites
        full = full or space.fold_is_large(len(memtable))
        ending = self._stopping and not self.backlog
        if memtable and not store.folding and (full or ending):
            self._fold()

    # -- turns --

    @property
    def backlog(self) -> int:
        """How many messages wait for their turn, or are under way."""
        waiting = len(self._turns) + len(self._behind) + len(self._parked)
        return waiting + (self._running is not None)

    @property
    def wake_at(self) -> int:
        """When the owner wants a drain, in milliseconds since the epoch; NEVER: no matter when."""
        if not self._parked:
            return NEVER
        return min(self._keys.priority.until, *(until for _, until in self._parked))

    def _unpark(self) -> None:
        """Let messages have their turn that have waited long enough for the transaction with priority;
        when that has ended, all writes, and the first that wants to open one.
        """
        free = not self._keys.priority.held(self._now)
        parked, self._parked = self._parked, []
        for envelope, until in parked:
            message, reply, _ = envelope
            opens = isinstance(message, Open)
            if opens and reply is not None and reply.done():
                continue  # nobody learns its id
            if free or self._now >= until:
                free = free and not opens
                self._turns.add(_flow(envelope), (envelope, until))
            else:
                self._parked.append((envelope, until))

    def _take(self, envelope: Envelope) -> None:
        """Handle a message now if there is time for it, or else let it wait for its turn."""
        if envelope[1] is None or (self._spent < DRAIN_SIZE and not self._turns):
            self._handle(envelope)
        else:
            self._turns.add(_flow(envelope), (envelope, 0))

    def _must_wait(self, message: Message[Any]) -> bool:
        """Does a message wait for the one that is under way?"""
        running = self._running
        if running is None:
            return False
        if running.context.alone and reads_staged(message):
            return True
        ref = getattr(message, "transaction", AUTOCOMMIT)
        return ref is not AUTOCOMMIT and ref == getattr(running.message, "transaction", AUTOCOMMIT)

    def _handle(self, envelope: Envelope, waited_until: int = 0) -> None:
        message, reply, lease = envelope
        if self._must_wait(message):
            self._behind.append((envelope, waited_until))
            return
        limit = UNLIMITED if reply is None else self._settings.max_request_work
        context = Context(limit, 0, STEP_SIZE, now=self._now, lease=lease, waited_until=waited_until)
        try:
            result = self._handlers[type(message)](context, message)
        except KvactorError as error:
            self._finish(context, envelope, error)
            return
        except MustWait as wait:
            self._parked.append((envelope, wait.until))
            return
        if not isinstance(result, GeneratorType):
            self._finish(context, envelope, result)
        elif self._running is None:
            self._step(_Running(envelope, context, result))
        else:
            self._behind.append((envelope, waited_until))  # it has not begun

    def _step(self, running: "_Running") -> None:
        """Take the next step of a message that takes several."""
        context, before = running.context, running.context.spent
        if not context.alone:
            context.now = self._now
        self._running = running
        try:
            next(running.steps)
        except StopIteration as end:
            result = end.value
        except KvactorError as error:
            result = error
        except MustWait as wait:
            result = wait
        else:
            self._spent += context.spent - before
            self._turns.charge(_flow(running.envelope), context.spent - before)
            context.step_end = context.spent + STEP_SIZE
            return
        self._running = None
        if context.alone:
            self._keys.end_alone()
        context.spent -= before
        if isinstance(result, MustWait):
            self._spent += context.spent
            self._parked.append((running.envelope, result.until))
        else:
            self._finish(context, running.envelope, result)
        behind, self._behind = self._behind, []
        for waiting in behind:
            self._turns.add(_flow(waiting[0]), waiting)

    def _finish(self, context: Context, envelope: Envelope, result: Any) -> None:
        """Answer a message with its result or its error, and charge its client."""
        message, reply, lease = envelope
        self._spent += context.spent
        if self._turns:
            self._turns.charge(_flow(envelope), context.spent)
        if reply is None:
            return
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
        depends_on = max(context.depends_on, error.depends_on)
        error.revision, error.time = max(depends_on, self._store.revision), context.now
        if depends_on > self._store.revision:
            self.held.hold(depends_on, reply, error)
        else:
            deliver(reply, error)

    # -- the feed --

    def _changes(self, context: Context, message: Changes) -> list[Revision] | Deferred:
        context.charge(FOLLOW)
        found = self._feed.read(message.since, message.limit, self._store.revision)
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
            free_space=self._keys.space.left,
            stalled=self._keys.stalled,
        )

    def _flush(self) -> None:
        journal, post, store, space = self._journal, self._post, self._store, self._keys.space
        space.take(store.staging)
        revisions = store.seal()
        head = revisions[-1].number
        journal.trim(*self._to_forget(head))
        if space.plenty:
            journal.append(revisions, lambda error: post(Flushed(head, error)))
        else:
            journal.append(revisions, lambda error: post(Flushed(head, error, self._read_space())))

    def _read_space(self) -> FreeSpace | None:
        try:
            return self.free_space()
        except OSError:
            return None  # the next tick tells of it

    def _note_space(self, reading: FreeSpace | None) -> None:
        if reading is not None:
            self._keys.space.note(reading, self._store.flushing_size)

    def _to_forget(self, head: int) -> tuple[int, int, int]:
        """Return what the journal may forget, as `trim` takes it; if space is low, all folded ones."""
        folded, settings = self._store.folded, self._settings
        if self._keys.space.low:
            return 0, 0, folded
        return max(0, head - settings.history) + 1, settings.history_size, folded

    def _forget(self) -> None:
        """Let the journal forget what no append has."""
        if self._forgetting or self._stopping or not self._keys.has_reserve():
            return
        may_forget = self._to_forget(self._store.revision)
        if may_forget != self._forgotten:
            self._forgetting, self._forgotten, post = True, may_forget, self._post
            self._journal.trim(*may_forget)
            self._journal.forget(lambda more, error: post(Forgot(more, error, self._read_space())))

    def _forgot(self, _: Context, message: Forgot) -> None:
        if message.error is not None:
            raise StorageFailed("the journal could not forget history") from message.error
        self._forgetting = False
        self._note_space(message.free_space)
        if message.more:
            self._forgotten = (0, 0, 0)
            self._forget()

    def _flushed(self, _: Context, message: Flushed) -> None:
        if message.error is not None:
            raise StorageFailed(
                f"the journal could not flush up to revision {message.revision}"
            ) from message.error
        revisions = self._store.apply()
        self._note_space(message.free_space)
        if self._keys.space.low:
            self._forget()
        self.held.release(message.revision)
        for reader in self._feed.publish(revisions):
            self._take(reader)

    def _fold(self) -> None:
        post = self._post
        self._tree.fold(self._store.freeze(), self._store.revision, lambda error: post(Folded(error)))

    def _folded(self, _: Context, message: Folded) -> None:
        if message.error is not None:
            raise StorageFailed("the tree could not fold the journal in") from message.error
        self._store.drop_frozen()
        if self._keys.space.low:
            self._forget()

    def _tick(self, context: Context, message: Tick) -> None:
        self._note_space(message.free_space)
        self._forget()
        store = self._store
        if self._keys.space.low and store.memtable and not store.folding and self._keys.has_reserve():
            self._fold()
        self._transactions.sweep(context.now)
        self._feed.sweep()
        if not self._sweeping and not self._must_wait(Sweep()):
            self._sweep(context)

    def _sweep(self, context: Context, _: Sweep | None = None) -> None:
        self._sweeping = False
        if self._stopping or self._keys.stalled or not self._keys.has_reserve(SWEEP_LIMIT):
            return
        self._sweeping = self._keys.sweep(context, SWEEP_LIMIT)
        if self._sweeping:
            self._post(Sweep())

    def _continue(self, _: Context, __: Continue) -> None:
        # It has begun a drain, which takes the next step and the next turns.
        self._continuing = False

    def _stop(self, _: Context, message: Stop) -> None:
        if self.backlog:  # which was accepted before
            self._post(message)
            return
        self._stopping = True
        self._transactions.stop()
        for reader in self._feed.release():
            self._take(reader)
