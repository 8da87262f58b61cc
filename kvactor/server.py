"""The one life cycle: a storage, the actor that owns its data, and the listener in front of both.

The rule: what starts last stops first. The command, the tests and the simulation all start and stop a
server here.

A start, in order:

1. The caller opens the storage: it takes the lock, checks the format, opens the journal and the tree.
2. `Server` makes the owner, which replays the revisions that the tree does not have yet. Damage to
   the data is found here.
3. `start` begins the actor: its loop, and the tick once a second.
4. The application is set up. It is ready for requests, and none can arrive yet.
5. The listener opens, and connections are accepted. The command writes its ready line.

A stop, in order, after SIGTERM, SIGINT or a failure of the actor:

1. The signal sets `request_stop`, or the actor's loop ends with an exception: `wait` returns. A second
   signal ends the process at once, with status 128 and its number (`cli.serve`).
2. The command starts the deadline: a process that has not ended `shutdown_timeout` and `exit_timeout`
   seconds later ends with status 1 (`cli.deadline`). Then it calls `stop`.
3. The listener closes: new connections are refused.
4. Idle connections close. A body that is still arriving gets 503, and a request that waits for changes
   gets those that there are. Requests in progress have `shutdown_timeout` to finish; then they
   are cancelled, and their connections close.
5. The actor handles `Stop`, behind every message that it has accepted. It rolls the shared transaction
   back, flushes what is staged, folds the memtable into the tree, and its loop ends. If the actor has
   failed, its loop has ended before, and all askers have got `OutcomeUnknown`.
6. The storage closes: it waits for a flush and a fold that are under way, and drops the lock.
7. The command logs the revision and exits with 0, or with 1 if the actor has failed.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from kvactor.actor import StoreActor, wall_clock
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.web.app import create_app, new_id
from kvactor.web.server import create_runner

#: Makes the protocol of one connection.
Factory = Callable[[], asyncio.BaseProtocol]

#: Connections that the kernel keeps until they are accepted.
BACKLOG = 1024


class CannotListen(Exception):
    """An address cannot be listened on. The text is a sentence that says why and what to do."""


class Listener(Protocol):
    """Where connections come from."""

    async def open(self, factory: Factory) -> None:
        """Accept connections, with a protocol from `factory` for each. Raises `CannotListen`."""

    def close(self) -> None:
        """Accept no more; keep those that are open. It may be called without `open`, and again."""


class TcpListener:
    """Listens on a host and a port; port 0 picks a free one."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that are listened on, once it is open."""
        if self._server is None:
            raise RuntimeError("the listener is not open")
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def open(self, factory: Factory) -> None:
        """See `Listener`."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(factory, self._host, self._port, backlog=BACKLOG)
        except (OSError, UnicodeError) as error:
            # A name that cannot be one is a UnicodeError. uvloop puts the address before the reason.
            reason = error.strerror if isinstance(error, OSError) else "this cannot be a host's name"
            reason = str(reason or error).rpartition(": ")[2]
            raise CannotListen(
                f"Cannot listen on port {self._port} of {self._host}: {reason}. "
                "Choose another address with --host and --port (0 picks a free one)."
            ) from error

    def close(self) -> None:
        """See `Listener`."""
        if self._server is not None:
            self._server.close()


class Server:
    """A server on an open storage, which `stop` closes. Raises `DataDamaged`.

    `clock` returns milliseconds since the epoch, `new_id` an id that nobody can guess.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        listener: Listener,
        *,
        clock: Callable[[], int] = wall_clock,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        self._storage = storage
        self._listener = listener
        self._stop_requested = asyncio.Event()
        self._closed = False
        #: the step at which a stop waits, for the log
        self.waiting_for = ""
        self.actor = StoreActor(storage, settings, clock)
        self.app = create_app(self.actor, settings, new_id)
        self.runner = create_runner(self.app, settings)

    @property
    def failed(self) -> bool:
        """Has the actor ended with an exception?"""
        return self.actor.done.done() and self.actor.done.exception() is not None

    async def start(self) -> None:
        """Start, in the order above, and return when connections are accepted.

        Raises `CannotListen`. On any exception it stops first.
        """
        await self.actor.start()
        try:
            await self.runner.setup()
            await self._listener.open(self._factory())
        except BaseException:
            await self.stop()
            raise

    def _factory(self) -> Factory:
        if self.runner.server is None:
            raise RuntimeError("the application is set up without a server")
        return self.runner.server

    def request_stop(self) -> None:
        """Let `wait` return."""
        self._stop_requested.set()

    async def wait(self) -> None:
        """Return after `request_stop`, or when its actor has ended."""
        requested = asyncio.ensure_future(self._stop_requested.wait())
        await asyncio.wait({requested, self.actor.done}, return_when=asyncio.FIRST_COMPLETED)
        requested.cancel()

    async def stop(self) -> None:
        """Stop, in the order above, and return when the storage is closed. It may be called again."""
        self.waiting_for = "requests in progress"
        self._listener.close()
        await self.runner.cleanup()
        self.waiting_for = "the owner: a flush or a fold is under way"
        await self.actor.stop()
        self.waiting_for = "the storage: a flush or a fold is under way"
        if not self._closed:
            self._closed = True
            # It blocks the loop, which has no other task now.
            self._storage.close()
        self.waiting_for = "threads that read from the disk"
