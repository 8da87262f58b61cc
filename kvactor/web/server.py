"""A server with connections of its own. With `connection`, `ending` and `parts`, all code that relies
on aiohttp's internals, but for two attributes of a request in `dispatcher`.

Slow readers are disconnected, connections over the limit get 503, and a stop waits only for requests in
progress. No request pays for that: a connection is counted when it begins and when it ends, and
checked, once a second, only while the kernel does not take what there is to send.

(Other bounds on what arrives: `connection`; `keepalive_timeout` for the time of a head; `body_reader`
for bodies.) `tests/web/test_server.py` names each internal that is relied on; pyproject.toml pins
aiohttp below the next minor version.
"""

import asyncio
import logging
import select
import struct
import weakref
from contextlib import suppress
from fcntl import ioctl
from socket import SO_LINGER, SOL_SOCKET
from termios import TIOCOUTQ
from typing import Any

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from kvactor.actor import StoreActor
from kvactor.core.memory import MemoryAccount
from kvactor.errors import KvactorError, TooManyConnections
from kvactor.settings import Settings
from kvactor.web.aiohttp_response import to_aiohttp
from kvactor.web.connection import Connection
from kvactor.web.ending import LINGER
from kvactor.web.errors import error_response
from kvactor.web.limits import CHUNK_SIZE
from kvactor.web.logs import AccessLogger, Digest
from kvactor.web.steps import Turnstile

log = logging.getLogger(__name__)

ACTOR = web.AppKey("actor", StoreActor)
ACCOUNT = web.AppKey("account", MemoryAccount)
TURNSTILE = web.AppKey("turnstile", Turnstile)

#: Seconds between two checks of slow clients, unless they have even less.
SWEEP = 1.0

#: Seconds for which a request may wait behind one that waits, such as a long poll.
BEHIND = 2.0

#: Seconds that a connection over the limit has to send its request: the response to that is 503.
REFUSAL_TIMEOUT = 2.0


def check_parser() -> None:
    """Raise `RuntimeError` if aiohttp runs without its parser in C: the advisories are mostly about the
    other one.
    """
    if HttpRequestParser is HttpRequestParserPy:
        raise RuntimeError(
            "aiohttp runs without its C extensions. Install a wheel that has them; unset "
            "AIOHTTP_NO_EXTENSIONS."
        )


class Anywhere(web.PlainResource):
    """The resource of every target that no other has, those without a path among them."""

    def __init__(self) -> None:
        super().__init__("/")

    @property
    def canonical(self) -> str:
        """See aiohttp."""
        return "/{path}"

    def _match(self, path: str) -> dict[str, str]:
        return {}


class Connections(web.Server):
    """Makes a protocol for each connection, in the place of aiohttp's server; `limits` are arguments of
    aiohttp's `RequestHandler`.
    """

    def __init__(
        self,
        server: web.Server,
        actor: StoreActor,
        account: MemoryAccount,
        turnstile: Turnstile,
        settings: Settings,
        **limits: Any,
    ) -> None:
        super().__init__(
            server.request_handler, request_factory=server.request_factory, handler_cancellation=False
        )
        self._limits = limits
        self._actor = actor
        self.account = account
        self.turnstile = turnstile
        self._settings = settings
        self._refusing = web.Server(self._refuse)
        self._limits_of_refused = {
            **limits,
            "keepalive_timeout": REFUSAL_TIMEOUT,
        }
        # Weak, because a connection that fails before it is made is never told of its end.
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        # In the order in which they became slow, so that runs are alike (P9).
        self._slow: dict[Connection, asyncio.Transport] = {}
        #: connections that are not read from, and since when
        self._unread: dict[Connection, tuple[asyncio.Transport, float]] = {}
        self._malformed = Digest(log, "a request was refused")
        self._pause = min(SWEEP, settings.write_timeout)
        self._sweeping = False

    @property
    def revision(self) -> int:
        """The newest durable revision."""
        return self._actor.revision

    def __call__(self) -> web.RequestHandler:
        """Return a connection's protocol."""
        if len(self._open) >= self._settings.max_connections:
            return Connection(self, self._refusing, **self._limits_of_refused)
        connection = Connection(self, self, **self._limits)
        self._open.add(connection)
        self._actor.metrics.connections = len(self._open)
        return connection

    def ended(self, connection: Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._slow.pop(connection, None)
        self._unread.pop(connection, None)
        self._actor.metrics.connections = len(self._open)

    def refused(self, error: KvactorError) -> None:
        """Count and log a request that could not be read."""
        self._actor.metrics.errors[error.code] += 1
        self._malformed.add(str(error))

    async def _refuse(self, request: web.BaseRequest) -> web.StreamResponse:
        error = TooManyConnections(
            f"{self._settings.max_connections} connections are open already. Try again later."
        )
        self._actor.metrics.errors[error.code] += 1
        response = to_aiohttp(error_response(request.path, error, self._actor.revision), 0)
        response.force_close()
        return response

    # -- slow clients --

    def watch(self, connection: Connection, transport: asyncio.Transport) -> None:
        """Watch a connection whose client has not taken everything."""
        connection.unsent = _unread(transport)
        connection.since = self._loop.time()
        self._slow[connection] = transport
        self._begin_sweeping()

    def unwatch(self, connection: Connection) -> None:
        """Stop watching a connection: the kernel has all that was sent."""
        self._slow.pop(connection, None)

    def paused(self, connection: Connection, transport: asyncio.Transport) -> None:
        """Look whether the client is still there, until reading goes on."""
        self._unread[connection] = transport, self._loop.time()
        self._begin_sweeping()

    def resumed(self, connection: Connection) -> None:
        """Reading goes on."""
        self._unread.pop(connection, None)
        connection.waits.hurried = False

    def _begin_sweeping(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(self._pause, self._sweep)

    def _sweep(self) -> None:
        try:
            self._end_slow()
            self._end_waits()
        finally:
            self._sweeping = bool(self._slow or self._unread)
            if self._sweeping:
                self._loop.call_later(self._pause, self._sweep)

    def _end_slow(self) -> None:
        now, disconnected = self._loop.time(), 0
        for connection, transport in list(self._slow.items()):
            left = _unread(transport)
            if left <= connection.unsent - CHUNK_SIZE:
                connection.unsent, connection.since = left, now
            elif now - connection.since >= self._settings.write_timeout:
                _reset(transport)
                self._slow.pop(connection, None)
                disconnected += 1
        if disconnected:
            self._actor.metrics.slow_clients_disconnected += disconnected
            log.info("slow clients disconnected: %d", disconnected)

    def _end_waits(self) -> None:
        """End what clients wait for that are gone, or whose next request has waited behind it for long:
        that they are gone may show only once all that they have sent is read.
        """
        now = self._loop.time()
        for connection, (transport, since) in list(self._unread.items()):
            if _has_left(transport):
                self._unread.pop(connection, None)
                connection.waits.leave()
            elif now - since >= BEHIND:
                connection.waits.hurry()

    # -- the end --

    def pre_shutdown(self) -> None:
        """See aiohttp: take no further requests."""
        super().pre_shutdown()
        self._refusing.pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:
        """See aiohttp: let requests finish within so many seconds, and close."""
        await super().shutdown(timeout)
        await self._refusing.shutdown(timeout)


def _unread(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has not taken: in the transport's buffer and in the kernel's,
    which may hold megabytes.
    """
    left = transport.get_write_buffer_size()
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError):  # not every system tells
            left += struct.unpack("i", ioctl(socket.fileno(), TIOCOUTQ, bytes(4)))[0]
    return left


def _has_left(transport: asyncio.Transport) -> bool:
    """Has the client ended its side? The kernel knows, though nothing is read.

    macOS has no `POLLRDHUP`; its `POLLHUP` is set as soon as one side has ended.
    """
    socket = transport.get_extra_info("socket")
    if socket is None:
        return False
    poll = select.poll()
    poll.register(socket.fileno(), getattr(select, "POLLRDHUP", select.POLLHUP))
    return bool(poll.poll(0))


def _reset(transport: asyncio.Transport) -> None:
    """End a connection, and have the kernel forget what was to be sent, too."""
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError):  # it has ended by itself
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class _Runner(web.AppRunner):
    """Serves an application over `Connections`."""

    def __init__(self, app: web.Application, settings: Settings, **limits: Any) -> None:
        super().__init__(app, shutdown_timeout=settings.shutdown_timeout, **limits)
        self._settings = settings
        self._limits = limits

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        app = self.app
        actor, account, turnstile = app[ACTOR], app[ACCOUNT], app[TURNSTILE]
        return Connections(server, actor, account, turnstile, self._settings, **self._limits)


def create_runner(app: web.Application, settings: Settings) -> web.AppRunner:
    """Return a runner with the limits that aiohttp has no good defaults for."""
    return _Runner(
        app,
        settings,
        logger=logging.getLogger("aiohttp.server"),
        access_log=logging.getLogger("aiohttp.access") if settings.access_log else None,
        access_log_class=AccessLogger,
        keepalive_timeout=settings.keepalive_timeout,
        max_line_size=settings.max_header_size,
        max_field_size=settings.max_header_size,
        lingering_time=LINGER,
        read_bufsize=CHUNK_SIZE,
        auto_decompress=False,
    )
