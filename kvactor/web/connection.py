"""One connection: what is done with the bytes that arrive. With `ending`, `parts` and `server`, all
code that relies on aiohttp's internals, but for two attributes of a request in `dispatcher`.

The rule: what a connection holds has a bound, and counts in the account of memory before it is held.
`Connection.data_received` alone decides about a chunk:

- A head that arrives in pieces is counted, up to `MAX_HEAD` bytes. One of more than
  `SMALL` bytes is counted by the request, until its response is sent.
- A body that arrives in pieces is counted on the lease of the request that reads it, before that on the
  connection's.
- What may have chunks of a body in it is parsed in parts (`parts`).
- Bytes behind an unhandled request count. At most `QUEUE` requests are parsed ahead; reading pauses
  until the last of them is being handled.

A connection from which nothing is read does not learn that its client is gone: `server` looks after
those once a second.
"""

import asyncio
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from kvactor.core.memory import SMALL, Lease, MemoryAccount
from kvactor.errors import InvalidRequest, Overloaded
from kvactor.web.ending import Refusals
from kvactor.web.logs import shown
from kvactor.web.parts import PartsHandler
from kvactor.web.waits import WAITS

#: Bytes of one request's head, all lines together.
MAX_HEAD: Final = 64 * 1024

#: Requests of one connection that are parsed ahead. Two, so that a full queue shows that more has
#: arrived.
QUEUE: Final = 2


class ConnectionServer(Refusals, Protocol):
    """What connections have in common."""

    account: MemoryAccount

    def ended(self, connection: "Connection") -> None:
        """Forget a connection."""

    def watch(self, connection: "Connection", transport: asyncio.Transport) -> None:
        """Watch a connection whose client has not taken everything."""

    def unwatch(self, connection: "Connection") -> None:
        """Stop watching a connection: the kernel has all that was sent."""

    def paused(self, connection: "Connection", transport: asyncio.Transport) -> None:
        """Look whether the client is still there, until reading goes on."""

    def resumed(self, connection: "Connection") -> None:
        """Reading goes on, or the connection has ended."""


class Connection(PartsHandler):
    """A connection of a client, and what it holds."""

    __slots__ = ("__weakref__", "_address", "_counting", "client", "large_head", "since", "unsent")

    _server: ConnectionServer

    def __init__(self, server: ConnectionServer, manager: web.Server, **limits: Any) -> None:
        #: whose connection it is; nobody's, unless it is connected
        self.client = server.account.nobody
        super().__init__(server, Lease(server.account, self.client), manager, **limits)
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=QUEUE,
        )
        self._address = ""
        #: bytes that the client has not taken, and since when
        self.unsent = 0
        self.since = 0.0
        #: may the head of a request that has arrived be large?
        self.large_head = False
        #: where a body under way is counted
        self._counting = self._lease

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        token = WAITS.set(self.waits)
        try:
            super().connection_made(transport)
        finally:
            WAITS.reset(token)
        # The name is a host and a port, or "" for a socket without a name.
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self.client = self._lease.client = self._server.account.connected(self._address)
        # So writing pauses as soon as anything is left, and all that is left is watched, even when
        # the connection is closing and only waits for that. (uvloop's class is no `asyncio.Transport`.)
        cast(asyncio.Transport, transport).set_write_buffer_limits(0)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio: forget what has arrived, and end what is waited for."""
        self._server.ended(self)
        account = self._server.account
        if self.client is not account.nobody:
            self._lease.close()
            self.client = account.nobody
            account.disconnected(self._address)
        if self._waiter is None:
            # Nobody turns to these any more. (Otherwise the connection's task is about to take one.)
            self._messages.clear()
        self._arriving = None
        super().connection_lost(exc)
        self._forget_parts()
        self.waits.leave()
        self._end_lingering()

    # -- what arrives --

    def data_received(self, data: bytes) -> None:
        """See the module. `data` is empty when what the parser has kept may be parsed now."""
        parser = self._parser
        arriving, size = self._arriving, len(data)
        if parser is None or self._force_close or self._close:
            self._drop(size)
            return
        if (size > self._at_once and self._in_parts(data)) or (
            arriving is not None and not self._body_has_room(arriving, size)
        ):
            return
        waiting = len(self._messages) > 0
        behind = waiting or self._request_in_progress
        try:
            messages, upgraded, tail = parser.feed_data(data)
        except HttpProcessingError as error:
            # Only its text is kept: with its traceback it would be a cycle that holds this chunk.
            text = shown(" ".join(error.message.split()).rstrip(" ^"))
            self._malformed(InvalidRequest(f"The request cannot be read: {text}"))
            return
        if arriving is not None and arriving.is_eof():
            self._arrived(waiting)
        if messages:
            self._request_count += len(messages)
            self._messages.extend(messages)
            message, payload = messages[-1]
            if payload is not EMPTY_PAYLOAD and not payload.is_eof():
                self._arriving, self._chunked = payload, message.chunked
            head = self._head
            behind = behind or len(messages) > 1
            if head or size > SMALL:
                self._heads_have_ended(messages, size, behind=behind)
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            if behind:
                self._hold_back(size)
            if message.upgrade and self._parser is not None:
                # aiohttp has lost what is behind the request, or will lose it, unless it has upgraded.
                alone = not (head or behind) and arriving is None and payload is EMPTY_PAYLOAD
                rest = _behind(message, data) if alone else None
                self._upgrade(message, tail if upgraded else rest)
        elif data and arriving is None:
            self._head_has_room(size)
        if self._unparsed and not data:
            # aiohttp has read what was parsed, or the connection has turned to it.
            self._parse_part()

    def _head_has_room(self, size: int) -> None:
        """Count bytes of a head under way."""
        self._head += size
        if self._head > MAX_HEAD:
            self._malformed(_too_long())
        elif not self._count(size):
            self._head = 0

    def _heads_have_ended(self, messages: Any, size: int, *, behind: bool) -> None:
        """Give back what heads have taken, and look at those that may be too long. `behind`: a chunk of
        so many bytes is held back, and counted there.
        """
        before, self._head = self._head, 0
        self.large_head = self.large_head or before + size > SMALL
        self._lease.release()
        if before + size > MAX_HEAD and any(_size(one) > MAX_HEAD for one, _ in messages):
            for _ in messages:
                self._messages.pop()
            self._arriving = None
            self._malformed(_too_long())
        elif not behind:
            body = messages[-1][1].total_bytes
            # The next head may have begun in the same chunk.
            rest = before + size - body - sum(_size(one) for one, _ in messages)
            if self._arriving is not None or rest > SMALL:
                self._count(body if self._arriving is not None else rest)

    def head_held(self, message: RawRequestMessage) -> Lease | None:
        """Return what a request's head holds, if it is large: its bytes, and the same as text. Raises
        `Overloaded`.
        """
        self.large_head = bool(self._messages)
        size = 2 * _size(message)
        if size <= SMALL:
            return None
        lease = self._lease.another()
        lease.acquire(size)
        return lease

    def _body_has_room(self, arriving: StreamReader, size: int) -> bool:
        try:
            self._counting.acquire(size)
        except Overloaded as error:
            self._abandon(arriving, error)
            return False
        return True

    def _arrived(self, waiting: bool) -> None:
        """A body that came in pieces is whole."""
        self._arriving = None
        if not waiting and self._parser is not None:
            # The parser counts requests that nobody has turned to. For one whose body was not whole
            # by then, nobody tells it.
            self._parser.message_consumed()
        if self._counting is self._lease:
            self._lease.release()

    def read_by(self, lease: Lease) -> None:
        """Count the body on the lease of the request that reads it. Raises `Overloaded`."""
        self._counting = lease
        self._lease.release()
        if self._arriving is not None:
            lease.acquire(self._arriving.total_bytes)

    def is_read(self) -> None:
        """A request reads its body no more."""
        self._counting = self._lease

    def _count(self, size: int) -> bool:
        """Count bytes before they are held; or refuse them, and all that follows."""
        try:
            self._lease.acquire(size)
        except Overloaded as error:
            self._refuse(error)
            return False
        return True

    def _hold_back(self, size: int) -> None:
        """Read no more until the connection turns to the last request that has arrived."""
        if self._held_back or self._parser is None or not self._count(size):
            return
        self._held_back = True
        self._pause_reading_for_buffer()
        if self.transport is not None:
            self._server.paused(self, self.transport)

    def _resume_reading_if_drained(self) -> None:
        """See aiohttp: the connection has turned to a request, while reading is paused."""
        if self._messages or not self._held_back:
            return
        self.data_received(b"")
        if not self._messages:
            self._held_back = False
            self._lease.release()
            if self._arriving is not None:
                self._count(self._arriving.total_bytes)
            self._server.resumed(self)
            if self._unparsed:
                self._parse_part()
            else:
                self._resume_reading_for_buffer()

    def _upgrade(self, message: RawRequestMessage, tail: bytes | None) -> None:
        """Go on in HTTP/1.1, as if no other protocol had been asked for; `tail` is what is behind the
        request, None if that is not known.
        """
        if message.method == hdrs.METH_CONNECT:
            self._messages.pop()
            self._arriving = None
            self._malformed(InvalidRequest("This server is no proxy: it takes no CONNECT."))
        elif tail is None:
            # Nothing tells where the next request begins: there is none on this connection.
            self._closes_after_last()
        else:
            cast(HttpRequestParser, self._parser).set_upgraded(False)
            if tail:
                self.data_received(tail)

    # -- what is written --

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        # Only a connection with a transport is written to.
        self._server.watch(self, cast(asyncio.Transport, self.transport))

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        self._server.unwatch(self)


#: Returns a request's connection, perhaps none of ours, and its head. Each of aiohttp's own properties
#: would be a call.
origin_of: Callable[[web.BaseRequest], tuple[Any, RawRequestMessage]] = attrgetter(
    "_protocol", "_message"
)


def connection_of(request: web.BaseRequest) -> Connection | None:
    """Return the connection that a request came over; None: it is not one of ours."""
    protocol = request.protocol
    return protocol if isinstance(protocol, Connection) else None


def _size(message: RawRequestMessage) -> int:
    """Return about how many bytes a request's head has."""
    fields = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return len(message.method) + len(message.path) + 12 + fields + 2


def _behind(message: RawRequestMessage, data: bytes) -> bytes | None:
    """Return what is behind a request without a body in a chunk that begins with it, or None."""
    data = data.lstrip(b"\r\n")
    if not data.startswith(f"{message.method} {message.path} ".encode()):
        return None
    return data.partition(b"\r\n\r\n")[2]


def _too_long() -> InvalidRequest:
    return InvalidRequest(f"The head of the request has more than {MAX_HEAD} bytes.")
