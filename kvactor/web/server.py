"""A server with connections of its own: all code that relies on aiohttp's internals is in this file.

Slow readers are disconnected, connections over the limit get 503, and a stop waits only for requests in
progress. No request pays for that: a connection is counted when it begins and when it ends, and
checked, once a second, only while the kernel does not take what there is to send.

(Other bounds on what arrives: `keepalive_timeout` and `max_header_size` for heads, `body_reader` for
bodies.) `tests/web/test_server.py` names each internal that this file relies on; pyproject.toml pins
aiohttp below the next minor version.
"""

import asyncio
import logging
import struct
import weakref
from contextlib import suppress
from fcntl import ioctl
from socket import SO_LINGER, SOL_SOCKET
from termios import TIOCOUTQ
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from multidict import CIMultiDict

from kvactor.actor import StoreActor
from kvactor.core.memory import Client, MemoryAccount
from kvactor.errors import TooManyConnections
from kvactor.settings import Settings
from kvactor.web.errors import error_response
from kvactor.web.http import CONTENT_TYPE, NO_HEADERS, REVISION, TIME, Response
from kvactor.web.limits import CHUNK_SIZE

log = logging.getLogger(__name__)

ACTOR = web.AppKey("actor", StoreActor)
ACCOUNT = web.AppKey("account", MemoryAccount)

#: Seconds between two checks of slow clients, unless they have even less.
SWEEP = 1.0

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


class _Response(web.Response):
    """A response whose headers aiohttp does not copy, and whose parts it does not check again."""

    def __init__(self, status: int, body: bytes, headers: CIMultiDict[str]) -> None:
        web.StreamResponse.__init__(self, status=status, _real_headers=headers)
        self._body = body


def to_aiohttp(response: Response, time: int) -> web.Response:
    """Return a response as aiohttp sends it, judged at `time`; 0: the owner was not asked."""
    headers: CIMultiDict[str] = CIMultiDict()
    headers[CONTENT_TYPE] = response.content_type
    headers[REVISION] = str(response.revision)
    if time:
        headers[TIME] = str(time)
    if response.headers is not NO_HEADERS:
        headers.update(response.headers)
    return _Response(response.status, response.body, headers)


class _Handler(web.RequestHandler):
    """A connection that a stop waits for only while it handles a request.

    A stop would also wait for one of aiohttp's own if its task has not begun yet, or while it drops
    the rest of a body. From a stop on, aiohttp drops what it receives: a client that is still sending
    has to read its response though sending fails.
    """

    __slots__ = ()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """See aiohttp: let the request finish within so many seconds, and close."""
        # A request that has come by now takes two turns of the loop until its handler begins. One was
        # that of the task that this runs in.
        await asyncio.sleep(0)
        if self._task_handler is not None and not self._request_in_progress:
            self._task_handler.cancel()
        await super().shutdown(timeout)


class _Connection(_Handler):
    """A connection with the time since when its client has not read."""

    __slots__ = ("__weakref__", "_address", "_of", "client", "left", "since")

    def __init__(self, of: "Connections", **limits: Any) -> None:
        super().__init__(of, loop=asyncio.get_running_loop(), **limits)
        self._of = of
        self._address = ""
        #: whose connection it is; None: it is not connected
        self.client: Client | None = None
        self.left = 0
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # The name is a host and a port, or "" for a socket without a name.
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self.client = self._of.account.connected(self._address)
        # So writing pauses as soon as anything is left, and all that is left is watched, even when
        # the connection is closing and only waits for that. (uvloop's class is no `asyncio.Transport`.)
        cast(asyncio.Transport, transport).set_write_buffer_limits(0)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._of.ended(self)
        if self.client is not None:
            self.client = None
            self._of.account.disconnected(self._address)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        # Only a connection with a transport is written to.
        self._of.watch(self, cast(asyncio.Transport, self.transport))

    def resume_writing(self) -> None:
        super().resume_writing()
        self._of.unwatch(self)


def client_of(request: web.Request, account: MemoryAccount) -> Client:
    """Return the client that has sent a request. All without a connection of ours are one."""
    return getattr(request.protocol, "client", None) or account.nobody


class Connections(web.Server):
    """Makes a protocol for each connection, in the place of aiohttp's server; `limits` are arguments of
    aiohttp's `RequestHandler`.
    """

    def __init__(
        self,
        server: web.Server,
        actor: StoreActor,
        account: MemoryAccount,
        settings: Settings,
        **limits: Any,
    ) -> None:
        super().__init__(
            server.request_handler, request_factory=server.request_factory, handler_cancellation=False
        )
        self._limits = limits
        self._actor = actor
        self.account = account
        self._settings = settings
        self._refusing = web.Server(self._refuse)
        self._limits_of_refused = {
            **limits,
            "keepalive_timeout": REFUSAL_TIMEOUT,
            "lingering_time": REFUSAL_TIMEOUT,
        }
        # Weak, because a connection that fails before it is made is never told of its end.
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        # In the order in which they became slow, so that runs are alike (P9).
        self._slow: dict[_Connection, asyncio.Transport] = {}
        self._pause = min(SWEEP, settings.write_timeout)
        self._sweeping = False

    def __call__(self) -> web.RequestHandler:
        """Return a connection's protocol."""
        if len(self._open) >= self._settings.max_connections:
            return _Handler(self._refusing, loop=self._loop, **self._limits_of_refused)
        connection = _Connection(self, **self._limits)
        self._open.add(connection)
        self._actor.metrics.connections = len(self._open)
        return connection

    def ended(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._slow.pop(connection, None)
        self._actor.metrics.connections = len(self._open)

    async def _refuse(self, request: web.BaseRequest) -> web.StreamResponse:
        error = TooManyConnections(
            f"{self._settings.max_connections} connections are open already. Try again later."
        )
        self._actor.metrics.errors[error.code] += 1
        response = to_aiohttp(error_response(request.path, error, self._actor.revision), 0)
        response.force_close()
        return response

    # -- slow clients --

    def watch(self, connection: _Connection, transport: asyncio.Transport) -> None:
        """Watch a connection whose client has not taken everything."""
        connection.left = _unread(transport)
        connection.since = self._loop.time()
        self._slow[connection] = transport
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(self._pause, self._sweep)

    def unwatch(self, connection: _Connection) -> None:
        """Stop watching a connection: the kernel has all that was sent."""
        self._slow.pop(connection, None)

    def _sweep(self) -> None:
        now, disconnected = self._loop.time(), 0
        for connection, transport in list(self._slow.items()):
            left = _unread(transport)
            if left <= connection.left - CHUNK_SIZE:
                connection.left, connection.since = left, now
            elif now - connection.since >= self._settings.write_timeout:
                _reset(transport)
                self._slow.pop(connection, None)
                disconnected += 1
        if disconnected:
            self._actor.metrics.slow_clients_disconnected += disconnected
            log.info("slow clients disconnected: %d", disconnected)
        self._sweeping = bool(self._slow)
        if self._sweeping:
            self._loop.call_later(self._pause, self._sweep)

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


def _reset(transport: asyncio.Transport) -> None:
    """End a connection, and have the kernel forget what was to be sent, too."""
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError):  # it has ended by itself
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class _NoTracebacks(logging.Filter):
    """Makes aiohttp log malformed requests and broken uploads in one line each.

    Those are the client's faults; the server's own keep their tracebacks.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | ConnectionError):
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args = "a request could not be read: %s", (" ".join(str(error).split()),)
            record.exc_info = record.exc_text = None
        return True


#: One object, so that a second runner does not add a second filter.
_no_tracebacks = _NoTracebacks()


class _Runner(web.AppRunner):
    """Serves an application over `Connections`."""

    def __init__(self, app: web.Application, settings: Settings, **limits: Any) -> None:
        super().__init__(app, shutdown_timeout=settings.shutdown_timeout, **limits)
        self._settings = settings
        self._limits = limits

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        app = self.app
        return Connections(server, app[ACTOR], app[ACCOUNT], self._settings, **self._limits)


def create_runner(app: web.Application, settings: Settings) -> web.AppRunner:
    """Return a runner with the limits that aiohttp has no good defaults for."""
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(_no_tracebacks)
    return _Runner(
        app,
        settings,
        logger=logger,
        access_log=logging.getLogger("aiohttp.access") if settings.access_log else None,
        keepalive_timeout=settings.keepalive_timeout,
        max_line_size=settings.max_header_size,
        max_field_size=settings.max_header_size,
        auto_decompress=False,
    )
