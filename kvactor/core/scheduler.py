"""The scheduler: which message is handled next, and how far, so that none keeps others waiting.

The rule: messages are handled in the order in which they came while a drain has time for them. What is
left waits for its turn among the clients. A long message takes steps, one in each drain, and others are
handled between them. A message waits, too, for an exclusive one or one in the same transaction,
and for a transaction with priority.
"""

from collections.abc import Callable, Iterable, Mapping
from types import GeneratorType
from typing import Any

import msgspec

from kvactor.core.context import Context
from kvactor.core.keyspace import Keyspace
from kvactor.core.memory import Lease
from kvactor.core.messages import AUTOCOMMIT, Message, Open, is_long, reads_staged
from kvactor.core.priority import MustWait
from kvactor.core.records import NEVER
from kvactor.core.replies import ReplyTo
from kvactor.core.turns import FlowKey, Turns
from kvactor.core.work import STEP_SIZE, UNLIMITED, Steps
from kvactor.errors import KvactorError

#: Units of work of one drain, about: then the actor looks for new messages, and continues.
DRAIN_SIZE = 5000

#: A message, where its answer goes (None for the owner's own messages), and what the answer holds.
Envelope = tuple[Message[Any], ReplyTo | None, Lease]

#: A message that waits, and the time until which it may wait for a transaction with priority; 0: it has
#: not waited for one.
_Waiting = tuple[Envelope, int]

#: Handles a message of its type; a generator takes steps.
Handler = Callable[[Context, Any], Any]


class _Running(msgspec.Struct):
    """A message that takes several steps, and is under way."""

    envelope: Envelope
    context: Context
    steps: Steps[Any]
    #: bytes of its lease before it began
    held: int

    @property
    def message(self) -> Message[Any]:
        return self.envelope[0]


def _flow(envelope: Envelope) -> FlowKey:
    return envelope[2].client, is_long(envelope[0])


class Scheduler:
    """Gives messages to their `handlers`, by type, and outcomes, values or errors, to `answer`.

    `keys` are where a message can be exclusive, and where a transaction has priority. A message of a
    client's may walk `max_work` units.
    """

    def __init__(
        self,
        handlers: Mapping[type, Handler],
        answer: Callable[[Context, Message[Any], ReplyTo, Lease, Any], None],
        keys: Keyspace,
        max_work: int,
    ) -> None:
        self._handlers = handlers
        self._answer = answer
        self._keys = keys
        self._max_work = max_work
        self._now = 0
        #: messages that wait for their turn
        self._turns = Turns[_Waiting]()
        self._running: _Running | None = None
        #: messages that wait for the one that is under way
        self._blocked: list[_Waiting] = []
        #: messages that wait for the transaction with priority, in the order in which they came
        self._parked: list[_Waiting] = []
        #: when the first of them has waited long enough; NEVER: none waits
        self._due = NEVER
        #: units of work of this drain
        self._spent = 0
        #: the message whose turn it is
        self._turn: Envelope | None = None

    def run(self, now: int, envelopes: Iterable[Envelope]) -> bool:
        """Handle new messages, and those that wait, while there is time; return whether there is more
        to do at once.
        """
        self._now = now
        if self._running is not None:
            self._step(self._running)
        # Of the messages; the one that is under way has had its step.
        self._spent = 0
        self.take(envelopes)
        priority = self._keys.priority
        if self._parked and (now >= self._due or not priority.held(now)):
            self._unpark()
        turns = self._turns
        while turns.size and self._spent < DRAIN_SIZE:
            self._turn, waited_until = turns.next()
            self._handle(self._turn, waited_until)
        self._turn = None
        return turns.size > 0 or self._running is not None

    @property
    def backlog(self) -> int:
        """How many messages wait for their turn, or are under way."""
        waiting = self._turns.size + len(self._blocked) + len(self._parked)
        return waiting + (self._running is not None)

    @property
    def wake_at(self) -> int:
        """When it has something to do, in milliseconds since the epoch; NEVER: it has nothing."""
        if not self._parked:
            return NEVER
        return min(self._keys.priority.until, self._due)

    def take_all(self) -> list[Envelope]:
        """Return all messages that are not answered: the owner has failed."""
        waiting = [one for one, _ in (*self._turns.take_all(), *self._blocked, *self._parked)]
        if self._running is not None:
            waiting.append(self._running.envelope)
        if self._turn is not None:
            waiting.append(self._turn)
        return waiting

    def take(self, envelopes: Iterable[Envelope]) -> None:
        """Handle messages now while there is time for them; let the others wait for their turn."""
        turns = self._turns
        for envelope in envelopes:
            if envelope[1] is None or (self._spent < DRAIN_SIZE and not turns.size):
                self._handle(envelope)
            else:
                turns.add(_flow(envelope), (envelope, 0))

    def must_wait(self, message: Message[Any]) -> bool:
        """Does a message wait for the one that is under way?"""
        running = self._running
        if running is None:
            return False
        if running.context.exclusive and reads_staged(message):
            return True
        ref = getattr(message, "transaction", AUTOCOMMIT)
        return ref is not AUTOCOMMIT and ref == getattr(running.message, "transaction", AUTOCOMMIT)

    def _park(self, envelope: Envelope, until: int) -> None:
        self._parked.append((envelope, until))
        self._due = min(self._due, until)
        self._keys.priority.queue += isinstance(envelope[0], Open)

    def _unpark(self) -> None:
        """Let messages have their turn that have waited long enough for the transaction with priority;
        when that has ended, all writes, and one that wants to open the next.
        """
        priority = self._keys.priority
        free = not priority.held(self._now)
        parked, self._parked, self._due, priority.queue = self._parked, [], NEVER, 0
        opening = self._next_to_open(parked) if free else None
        for envelope, until in parked:
            message, reply, _ = envelope
            if isinstance(message, Open):
                if reply is not None and reply.done():
                    continue  # nobody learns its id
                goes_on = envelope is opening or not priority.wait
            else:
                goes_on = free
            if goes_on or self._now >= until:
                self._turns.add(_flow(envelope), (envelope, until))
            else:
                self._park(envelope, until)

    def _next_to_open(self, parked: Iterable[_Waiting]) -> Envelope | None:
        """Return the first message that wants to open a transaction with priority: of another client's
        than the one that had it last, if there is one.
        """
        opens = [
            one
            for one, _ in parked
            if isinstance(one[0], Open) and not (one[1] is not None and one[1].done())
        ]
        others = (one for one in opens if one[2].client is not self._keys.priority.last)
        return next(others, opens[0] if opens else None)

    def _handle(self, envelope: Envelope, waited_until: int = 0) -> None:
        message, reply, lease = envelope
        if self._running is not None and self.must_wait(message):
            self._blocked.append((envelope, waited_until))
            return
        limit = UNLIMITED if reply is None else self._max_work
        context = Context(limit, 0, STEP_SIZE, now=self._now, lease=lease, waited_until=waited_until)
        try:
            result = self._handlers[type(message)](context, message)
        except KvactorError as error:
            result = error
        except MustWait as wait:
            self._park(envelope, wait.until)
            return
        if not isinstance(result, GeneratorType):
            # As `_finish`, without another call for each message.
            self._spent += context.spent
            if self._turns.size:
                self._turns.charge(_flow(envelope), context.spent)
            if reply is not None:
                self._answer(context, message, reply, lease, result)
        elif self._running is None:
            self._step(_Running(envelope, context, result, lease.size))
        else:
            self._blocked.append((envelope, waited_until))  # it has not begun

    def _step(self, running: _Running) -> None:
        """Take the next step of a message that takes several."""
        context, before = running.context, running.context.spent
        if not context.exclusive:
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
            self._charge(running, context.spent - before)
            context.step_end = context.spent + STEP_SIZE
            return
        self._running = None
        if context.exclusive:
            self._keys.leave_exclusive()
        context.spent -= before
        if isinstance(result, MustWait):
            self._charge(running, context.spent)
            running.envelope[2].resize(running.held)
            self._park(running.envelope, result.until)
        else:
            self._finish(context, running.envelope, result)
        blocked, self._blocked = self._blocked, []
        for waiting in blocked:
            self._turns.add(_flow(waiting[0]), waiting)

    def _finish(self, context: Context, envelope: Envelope, result: Any) -> None:
        message, reply, lease = envelope
        self._spent += context.spent
        if self._turns.size:
            self._turns.charge(_flow(envelope), context.spent)
        if reply is not None:
            self._answer(context, message, reply, lease, result)

    def _charge(self, running: _Running, units: int) -> None:
        """Charge the drain, and a message's client."""
        self._spent += units
        self._turns.charge(_flow(running.envelope), units)
