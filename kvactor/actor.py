"""The actor: a bounded mailbox, and the one coroutine that owns the data.

The rule: each asker gets exactly one reply (P4). The loop takes all messages that wait, gives them to
the owner as one drain, and goes on. If the owner raises, the state is unknown: all askers get
`OutcomeUnknown`, and the loop ends with the exception, so that the process ends (P10).

A failed flush, in order:

1. The journal's thread posts `Flushed` with the error.
2. The owner raises `StorageFailed`, which is no outcome for a client, so it leaves the drain.
3. The loop logs it, and refuses new messages. The messages of this drain, those in the mailbox, the
   held replies and the readers of the feed get `OutcomeUnknown`.
4. The loop's task ends with the exception. `Server.wait` returns, and the server stops with status 1.

A failed fold, and any unexpected exception in a drain, take the same way from step 2 on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kvactor.core.memory import UNCOUNTED, Lease
from kvactor.core.messages import Answer, Continue, Message, Status, Stop, Tick
from kvactor.core.owner import Owner
from kvactor.core.protocols import StorageFailed
from kvactor.core.records import NEVER
from kvactor.core.replies import ReplyTo, deliver
from kvactor.core.scheduler import Envelope
from kvactor.core.space import FreeSpace
from kvactor.errors import KvactorError, OutcomeUnknown, Overloaded, Stopping
from kvactor.metrics import MeasuredJournal, MeasuredTree, Metrics
from kvactor.settings import Settings
from kvactor.storage.directory import Storage

log = logging.getLogger(__name__)

R = TypeVar("R")

#: Seconds between two ticks.
TICK = 1.0

#: Places that a full mailbox has for `Status`: whoever watches the server sees it overloaded.
STATUS_PLACES = 8

#: Seconds for which the loop yields to a fold in the background after a drain, when the fold has
#: fallen behind.
FOLD_YIELD = 0.001


def wall_clock() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class StoreActor:
    """Owns the data of a storage, from `start` to `stop`. Raises `DataDamaged` if the storage cannot
    be recovered.

    `clock` returns milliseconds since the epoch. `done` is the loop's task; it ends with an exception
    when the owner has failed. `kvactor.server` closes the storage.
    """

    done: asyncio.Task[None]

    def __init__(
        self, storage: Storage, settings: Settings, clock: Callable[[], int] = wall_clock
    ) -> None:
        self._settings = settings
        self._clock = clock
        # A list, and a future that is done when something is in it: a Queue costs more per message.
        self._mailbox: list[Envelope] = []
        self._mail: asyncio.Future[None]
        #: how many requests the mailbox may hold, beside the answers that wait for a flush
        self._room = settings.mailbox_size
        self.metrics = metrics = Metrics()
        self._owner = Owner(
            MeasuredJournal(storage.journal, metrics),
            MeasuredTree(storage.tree, metrics),
            settings,
            self._post,
        )
        self._woken_at = 0.0
        self._draining: list[Envelope] = []
        #: makes the error for new requests, unless the loop is running
        self._closed: Callable[[], KvactorError] | None = _stopping
        #: the newest durable revision
        self.revision = self._owner.revision
        self._free_space_known = True
        #: were writes refused for want of space when the log last told?
        self._full = False
        #: whether the owner is given a drain when it wants one; it never wants an earlier one meanwhile
        self._waking = False

    @property
    def waiting(self) -> int:
        """How many requests wait: in the mailbox, or for a flush."""
        asked = sum(reply is not None for _, reply, _ in self._mailbox)
        return asked + len(self._owner.held) + self._owner.scheduler.backlog

    # -- asking --

    def ask(self, message: Message[R], lease: Lease = UNCOUNTED) -> "asyncio.Future[Answer[R]]":
        """Return the future result of a message. Raises `Overloaded` or `Stopping` at once.

        `lease` holds what the result takes.

        An asker may cancel the future: the message is handled all the same (P7).
        """
        if self._closed is not None:  # before the start there is no loop
            raise self._closed()
        reply: asyncio.Future[Answer[R]] = self._loop.create_future()
        self.submit(message, reply, lease)
        return reply

    def submit(self, message: Message[Any], reply: ReplyTo, lease: Lease = UNCOUNTED) -> None:
        """Give the owner a message; its outcome goes to `reply`, once. Only the loop's thread may call.

        Raises `Overloaded` or `Stopping` at once, and leaves `reply` alone then.
        """
        if self._closed is not None:
            raise self._closed()
        mailbox = self._mailbox
        if len(mailbox) >= self._room:
            self.check_room(STATUS_PLACES if isinstance(message, Status) else 0)
        # As `_put`, without another call for each request.
        if not mailbox:
            self._woken_at = self.metrics.clock()
            self._mail.set_result(None)
        mailbox.append((message, reply, lease))

    def check_room(self, places: int = 0) -> None:
        """Raise `Overloaded` if the mailbox is full; `places` beyond its size are free for some."""
        if len(self._mailbox) >= self._room + places:
            raise Overloaded(
                f"{self._settings.mailbox_size} requests are waiting already. Try again later."
            )

    def _post(self, message: Message[Any]) -> None:
        self._loop.call_soon_threadsafe(self._put, (message, None, UNCOUNTED))

    def _put(self, envelope: Envelope) -> None:
        if not self._mailbox:
            self._woken_at = self.metrics.clock()
            self._mail.set_result(None)
        self._mailbox.append(envelope)

    # -- life --

    async def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.get_running_loop()
        self._closed = None
        self._mail = self._loop.create_future()
        self.done = self._loop.create_task(self._run(), name="kvactor-owner")
        self._loop.call_later(TICK, self._tick)
        self._tell_if_full()

    async def stop(self) -> None:
        """Handle the messages that were accepted, flush and fold. Return when the loop has ended.

        It may be called again. A failure stays in `done`.
        """
        if self._closed is None:
            self._closed = _stopping
            self._post(Stop())
        await asyncio.wait({self.done})

    def _tick(self) -> None:
        if not self.done.done():
            self._loop.call_later(TICK, self._tick)
            self._tell_if_full()
            self._post(Tick(self._free_space()))

    def _wake(self) -> None:
        self._waking = False
        self._put((Continue(), None, UNCOUNTED))

    def _free_space(self) -> FreeSpace | None:
        """Return the free space; None, with one line in the log, if they cannot be read.

        Any error leaves the last known figure in place, so that ticks continue.
        """
        try:
            free = self._owner.free_space()
        except Exception as error:  # noqa: BLE001
            if self._free_space_known:
                log.warning(
                    "the free space of the disk cannot be read, the last known figure stays: %s", error
                )
            self._free_space_known = False
            return None
        if not self._free_space_known:
            log.info("the free space of the disk can be read again")
        self._free_space_known = True
        return free

    def _tell_if_full(self) -> None:
        """Log it when the disk has become full, or is not full any more, since the last tick."""
        admission = self._owner.admission
        if admission.full == self._full:
            return
        self._full = not self._full
        settings = self._settings
        if self._full:
            log.warning(
                "writes are refused (507): %d bytes are free where %s is, and min_free_space is %d",
                admission.left,
                settings.data_dir,
                settings.min_free_space,
            )
        else:
            log.info("writes are accepted again: %d bytes are free", admission.left)

    async def _run(self) -> None:
        owner, loop, metrics = self._owner, self._loop, self.metrics
        scheduler, writer = owner.scheduler, owner.writer
        mailbox_size = self._settings.mailbox_size
        try:
            while not owner.finished:
                await self._mail
                self._mail = loop.create_future()
                self._draining, self._mailbox = self._mailbox, []
                metrics.mailbox_wait.observe(metrics.clock() - self._woken_at)
                owner.drain(self._clock(), self._draining)
                self.revision = owner.revision
                backlog = scheduler.backlog
                self._room = mailbox_size - len(owner.held) - backlog
                if backlog and not self._waking and (at := scheduler.wake_at) != NEVER:
                    self._waking = True
                    loop.call_later(max(0, at - self._clock()) / 1000, self._wake)
                if writer.folds_lag:
                    _yield_to_fold()
        except Exception as error:
            free = self._free_space() if isinstance(error, StorageFailed) else None
            log.critical(
                "the owner has failed, the process must end: %s%s",
                _chain(error),
                f" ({free.disk} bytes are free)" if free is not None else "",
                exc_info=error,
            )
            self._fail()
            raise
        self._refuse(_stopping)

    def _fail(self) -> None:
        self._refuse(_unknown)
        self._owner.fail(_unknown())

    def _refuse(self, error: Callable[[], KvactorError]) -> None:
        self._closed = error
        for _, reply, _ in self._draining + self._mailbox:
            if reply is not None:
                deliver(reply, error())


def _stopping() -> Stopping:
    return Stopping("The server is shutting down, or not up yet.")


def _unknown() -> OutcomeUnknown:
    return OutcomeUnknown(
        "The server has failed and is ending. What was asked for may have been done, or not: "
        "look after the restart."
    )


def _yield_to_fold() -> None:
    # A fold runs only while the loop has released the interpreter, which a busy loop hardly does.
    time.sleep(FOLD_YIELD)


def _chain(error: BaseException) -> str:
    return f"{error}: {error.__cause__}" if error.__cause__ else str(error) or repr(error)
