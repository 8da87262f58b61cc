"""One connection: what is done with the bytes that arrive, and how it ends. With `server`, all code
that relies on aiohttp's internals, but for two attributes of a request in `dispatcher`.

The rule: what a connection holds has a bound, and counts in the account of memory before it is held.
`Connection.data_received` alone decides about a chunk:

- A head that arrives in pieces is counted, up to `MAX_HEAD` bytes. One of more than
  `SMALL` bytes is counted by the request, until its response is sent.
- A body that arrives in pieces is counted on the lease of the request that reads it, before that on the
  connection's.
- What may have chunks of a body in it is parsed in parts, one of all connections in a turn of the loop:
  aiohttp has several calls for each chunk, and 256 KiB may hold 40,000 of them. What is not parsed yet
  counts, and reading pauses.
- Bytes behind an unhandled request count. At most `QUEUE` requests are parsed ahead; reading pauses
  until the last of them is being handled.
- After something that is refused, nothing more is parsed or kept: it is dropped, up to a bound in bytes
  and time, so that a client that is still sending can read why.

A connection from which nothing is read does not learn that its client is gone: `server` looks after
those once a second. A client that has sent its request and then ends its side (a half-closed
connection) gets its response.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from operator import attrgetter
from typing import Any, Final, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from kvactor.core.memory import SMALL, Lease, MemoryAccount
from kvactor.errors import InvalidRequest, KvactorError, Overloaded
from kvactor.web.aiohttp_response import send, to_aiohttp
from kvactor.web.errors import INTERNAL_ERROR, error_response, status_response
from kvactor.web.logs import shown
from kvactor.web.steps import Turnstile
from kvactor.web.waits import WAITS, Waits

log = logging.getLogger(__name__)

#: Bytes of one request's head, all lines together.
MAX_HEAD: Final = 64 * 1024

#: Requests of one connection that are parsed ahead. Two, so that a full queue shows that more has
#: arrived.
QUEUE: Final = 2

#: For how many seconds, and bytes, a connection drops what a client still sends after its refusal.
LINGER: Final = 2.0
LINGER_SIZE: Final = 64 * 1024 * 1024

#: Bytes of chunked bodies that are parsed at a time: about 5 milliseconds at worst.
PART: Final = 8 * 1024


class GracefulHandler(web.RequestHandler):
    """A connection that a stop waits for only while it handles a request.

    A stop would also wait for one of aiohttp's own if its task has not begun yet, or while it drops
    the rest of a body. From a stop on, what arrives is dropped: a client that is still sending has to
    read its response though sending fails.
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


class ConnectionServer(Protocol):
    """What connections have in common."""

    account: MemoryAccount
    turnstile: Turnstile

    @property
    def revision(self) -> int:
        """The newest durable revision, for responses."""

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

    def refused(self, error: KvactorError) -> None:
        """Count and log a request that could not be read."""


class Connection(GracefulHandler):
    """A connection of a client, and what it holds."""

    __slots__ = (
        "__weakref__",
        "_address",
        "_arriving",
        "_at_once",
        "_chunked",
        "_counting",
        "_dropped",
        "_head",
        "_held_back",
        "_lease",
        "_lingering",
        "_parts",
        "_server",
        "_unparsed",
        "_waits_for_turn",
        "client",
        "large_head",
        "since",
        "unsent",
        "waits",
    )

    def __init__(self, server: ConnectionServer, manager: web.Server, **limits: Any) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(manager, loop=loop, **limits)
        self._parser = HttpRequestParser(
            self,
            loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=QUEUE,
        )
        self._server = server
        self._address = ""
        #: whose connection it is; nobody's, unless it is connected
        self.client = server.account.nobody
        #: bytes that the client has not taken, and since when
        self.unsent = 0
        self.since = 0.0
        self.waits = Waits()
        #: bytes of a head under way
        self._head = 0
        #: may the head of a request that has arrived be large?
        self.large_head = False
        #: the body that has not arrived whole; it is that of the newest request
        self._arriving: StreamReader | None = None
        self._chunked = False
        #: what the connection itself holds, and where a body under way is counted
        self._lease = Lease(server.account, self.client)
        self._counting = self._lease
        #: a chunk of up to so many bytes is parsed at once; none while others wait
        self._at_once = PART
        #: what has arrived and has to be parsed in parts, and where it is counted
        self._unparsed = memoryview(b"")
        self._parts: Lease | None = None
        self._waits_for_turn = False
        #: Does it read no more until it has turned to the last request that has arrived?
        self._held_back = False
        self._dropped = 0
        self._lingering: asyncio.Future[None] | None = None

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

    def _in_parts(self, data: bytes) -> bool:
        """Parse a chunk in parts, if there may be chunks of a body in it."""
        chunked = self._chunked and self._arriving is not None
        if not (chunked or self._unparsed or self._head or b"chunked" in data.lower()):
            return False
        self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
        self._parse_part()
        return True

    def _parse_part(self, turn: asyncio.Future[None] | None = None) -> None:
        """Parse a part in a turn, and keep the others for later ones. It has waited for `turn`."""
        if turn is not None:
            self._waits_for_turn = False
        if not self._unparsed:
            return
        if self._waits_for_turn or self._held_back or self._reading_paused:
            self._keep_parts()
            return
        if turn is None and (turn := self._server.turnstile.enter()) is not None:
            self._waits_for_turn = True
            turn.add_done_callback(self._parse_part)
            self._keep_parts()
            return
        part, self._unparsed = bytes(self._unparsed[:PART]), self._unparsed[PART:]
        self._at_once = PART
        self.data_received(part)
        if self._unparsed:
            self._parse_part()
        else:
            self._forget_parts()

    def _keep_parts(self) -> None:
        """Count what is not parsed yet, and read no more until it is."""
        self._at_once = 0
        if self._parts is None:
            self._parts = self._lease.another()
        if not self._buffer_paused:
            self._pause_reading_for_buffer()
        try:
            self._parts.resize(len(self._unparsed))
        except Overloaded as error:
            self._refuse(error)

    def _forget_parts(self) -> None:
        self._unparsed, self._at_once = memoryview(b""), PART
        if self._parts is not None:
            self._parts.close()
            self._parts = None
        if self._buffer_paused and not self._held_back:
            self._resume_reading_for_buffer()

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
            self._messages[-1] = (message._replace(should_close=True), self._messages[-1][1])
        else:
            cast(HttpRequestParser, self._parser).set_upgraded(False)
            if tail:
                self.data_received(tail)

    # -- the end --

    def _malformed(self, error: KvactorError) -> None:
        self._server.refused(error)
        self._refuse(error)

    def _refuse(self, error: KvactorError) -> None:
        """Answer with an error once all requests before are answered; parse and keep nothing more."""
        self._parser = None
        self._head = 0
        self._forget_parts()
        self._lease.release()
        if self._arriving is not None:
            self._abandon(self._arriving, error)
            return
        self._request_count += 1
        self._messages.append((_ErrInfo(HTTPStatus.BAD_REQUEST, error, ""), EMPTY_PAYLOAD))
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _abandon(self, arriving: StreamReader, error: KvactorError) -> None:
        """Let the request whose body arrives fail, and close the connection after it."""
        self._parser = None
        self._arriving = None
        arriving.set_exception(error)
        arriving.feed_eof()
        message, _ = self._messages[-1] if self._messages else (None, None)
        if isinstance(message, RawRequestMessage):
            self._messages[-1] = (message._replace(should_close=True), arriving)
        else:
            self.close()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_SIZE:
            self._end_lingering()

    async def linger(self) -> None:
        """Drop what the client still sends, within bounds, after it was told all that there is to tell.

        Closed with unread data, a connection is reset, and the client may not see the response.
        """
        transport = self.transport
        self._parser = None
        self._forget_parts()
        if transport is None or transport.is_closing() or self._force_close or self.waits.client_gone:
            return
        with suppress(NotImplementedError, OSError, RuntimeError):
            transport.write_eof()
        self._dropped = 0
        self._lingering = self._loop.create_future()
        self._reading_paused = False
        self._resume_reading_for_buffer()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._lingering
        self._lingering = None

    def _end_lingering(self) -> None:
        if self._lingering is not None and not self._lingering.done():
            self._lingering.set_result(None)

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """See aiohttp and `GracefulHandler`."""
        self._end_lingering()
        await super().shutdown(timeout)

    def eof_received(self) -> bool:  # type: ignore[override] # as asyncio's
        """See asyncio: the client sends no more. True: it still gets a response."""
        self._end_lingering()
        waiter = self._waiter
        idle = waiter is not None and not waiter.done()
        if idle or not self._request_count or self._arriving is not None or self._lingering is not None:
            return False
        self.waits.leave()
        self.close()
        return True

    # -- responses of aiohttp's own --

    def _make_error_handler(
        self, err_info: Any
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def refuse(request: web.BaseRequest) -> web.StreamResponse:
            response = to_aiohttp(error_response("", err_info.exc, self._server.revision), 0)
            response.force_close()
            await send(request, response)
            await self.linger()
            return response

        return refuse

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See aiohttp: the response to a fault of the server's outside of the dispatcher."""
        log.error("%s %s failed", request.method, shown(request.path), exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("A part of the response is sent already.")
        detail = "The server has made a mistake; its log says more."
        error = HTTPStatus.INTERNAL_SERVER_ERROR
        response = to_aiohttp(
            status_response(request.path, self._server.revision, error, INTERNAL_ERROR, detail), 0
        )
        response.force_close()
        return response

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
