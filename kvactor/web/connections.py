"""Connections: how many there may be, how long one may leave unread what it is sent, and which a stop
waits for.

The rule: whoever does not take what it has asked for is cut off, one client too many is told to come
back, and a stop waits for requests alone. No request pays for that: a connection is counted when it
begins and when it ends, and looked at, once a second, only while the kernel does not take what there
is to send.

(What arrives is bounded elsewhere: heads by `keepalive_timeout` and `max_header_size`, bodies by
`requests`.)
"""

import asyncio
import logging
import resource
import struct
import weakref
from contextlib import suppress
from fcntl import ioctl
from socket import SO_LINGER, SOL_SOCKET
from termios import TIOCOUTQ
from typing import Any, cast

from aiohttp import web

from kvactor.actor import StoreActor
from kvactor.errors import TooManyConnections
from kvactor.settings import Settings
from kvactor.web.errors import refusal

log = logging.getLogger(__name__)

#: Bytes that a client has to take within `write_timeout`, unless it takes all; and in which streams
#: are written.
PIECE = 64 * 1024

#: Seconds between two looks at those who are slow, unless they get even less.
SWEEP = 1.0

#: Seconds that one connection too many gets to send its request: the answer to that is 503.
MANNERS = 2.0

#: Files that the server opens beside connections: the data, the log, the loop's own.
OTHER_FILES = 100


class _Handler(web.RequestHandler):
    """A connection that a stop waits for only while it handles a request.

    aiohttp's own is also waited for if its task has not begun yet, and if the rest of a body arrives
    that nobody reads; and from a stop on it drops what it receives. Who is still sending then has to
    read its answer though sending fails.
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
    """A connection that knows since when it waits for its client to read."""

    __slots__ = ("__weakref__", "_of", "left", "since", "wire")

    def __init__(self, of: "Connections", **limits: Any) -> None:
        super().__init__(of, loop=asyncio.get_running_loop(), **limits)
        self._of = of
        self.wire: asyncio.Transport
        self.left = 0
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.wire = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        # So writing pauses as soon as anything is left, and all that is left is watched, even when
        # the connection is closing and only waits for that.
        self.wire.set_write_buffer_limits(0)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._of.ended(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._of.slow(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._of.quick(self)


class Connections(web.Server):
    """Makes a protocol for each connection, as the server that it takes the place of; `limits` are
    those of aiohttp's handlers.
    """

    def __init__(
        self, server: web.Server, actor: StoreActor, settings: Settings, **limits: Any
    ) -> None:
        super().__init__(
            server.request_handler, request_factory=server.request_factory, handler_cancellation=False
        )
        self._limits = limits
        self._actor = actor
        self._settings = settings
        self._refusing = web.Server(self._refuse)
        self._limits_of_refused = {**limits, "keepalive_timeout": MANNERS, "lingering_time": MANNERS}
        # Weak, because a connection that fails before it is made is never told of its end.
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        # In the order in which they have become so: the same each time (P9).
        self._slow: dict[_Connection, None] = {}
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
        answer = refusal(request, error, self._actor.revision)
        answer.force_close()
        return answer

    # -- who does not read --

    def slow(self, connection: _Connection) -> None:
        """Watch a connection whose client has not taken everything."""
        connection.left = _unread(connection.wire)
        connection.since = self._loop.time()
        self._slow[connection] = None
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(self._pause, self._sweep)

    def quick(self, connection: _Connection) -> None:
        """Leave it alone: the kernel has all of it."""
        self._slow.pop(connection, None)

    def _sweep(self) -> None:
        now, slow_clients_disconnected = self._loop.time(), 0
        for connection in list(self._slow):
            left = _unread(connection.wire)
            if left <= connection.left - PIECE:
                connection.left, connection.since = left, now
            elif now - connection.since >= self._settings.write_timeout:
                _reset(connection.wire)
                self._slow.pop(connection, None)
                slow_clients_disconnected += 1
        if slow_clients_disconnected:
            self._actor.metrics.slow_clients_disconnected += slow_clients_disconnected
            log.info(
                "clients that did not read what they were sent have been cut off: %d",
                slow_clients_disconnected,
            )
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


def _unread(wire: asyncio.Transport) -> int:
    """Return how many bytes are sent and not taken: here, and in the kernel, which may have
    megabytes of them.
    """
    left = wire.get_write_buffer_size()
    socket = wire.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError):  # not every system tells
            left += struct.unpack("i", ioctl(socket.fileno(), TIOCOUTQ, bytes(4)))[0]
    return left


def _reset(wire: asyncio.Transport) -> None:
    """End a connection, and have the kernel forget what was to be sent, too."""
    socket = wire.get_extra_info("socket")
    if socket is not None:
        with suppress(OSError):  # it has ended by itself
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    wire.abort()


def connections_possible() -> int:
    """Let the process open as many files as it may; return how many of them can be connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        hard = soft  # as on systems that say "unlimited" and do not mean it
    return max(1, (1 << 31 if hard == resource.RLIM_INFINITY else hard) - OTHER_FILES)
