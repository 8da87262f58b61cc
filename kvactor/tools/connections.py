"""Connections to a server, blocking and under asyncio, around the one protocol of `http` and the one
parser of `sse`.

The rule is `http`'s: a request is sent once. No connection is made again, and no request repeated,
unless the caller does it.
"""

import asyncio
import socket
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Final, Self, cast

from kvactor.tools.http import NO_HEADERS, ClientProtocol, Closed, Response, encode_request
from kvactor.tools.sse import Event, EventParser

#: Seconds for which a blocking call waits for the server.
TIMEOUT: Final = 30.0

#: Bytes of one read.
_READ: Final = 1 << 16


class Connection:
    """A blocking keep-alive connection, from an address `source` if it is given. Receiving raises
    `TimeoutError` after `timeout` seconds.
    """

    def __init__(
        self, host: str, port: int, timeout: float = TIMEOUT, source: str | None = None
    ) -> None:
        self.socket = socket.create_connection(
            (host, port), timeout, source_address=None if source is None else (source, 0)
        )
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocol = ClientProtocol()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        """Send a request. Raises `ConnectionError`."""
        self.socket.sendall(self._protocol.request(method, target, body, headers))

    def send_raw(self, data: bytes) -> None:
        """Send bytes that begin or are one request, other than HEAD. Raises `ConnectionError`."""
        self._protocol.expect()
        self.socket.sendall(data)

    def receive(self) -> Response:
        """Return the next response. Raises `ConnectionError`, and `ValueError` if it is none."""
        while (response := self._protocol.response()) is None:
            self._read(_READ)
        return response

    def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> Response:
        """Send a request, and return its response. Raises as `send` and `receive` do."""
        self.send(method, target, body, headers)
        return self.receive()

    def receive_status(self) -> int:
        """Return the status of the response that is arriving; its body may have no end."""
        while self._protocol.head is None:
            self._read_open(_READ)
        return self._protocol.head.status

    def read_body(self, most: int = _READ) -> bytes:
        """Return what has arrived of the body, or else wait for at most so many bytes of the connection
        and return what they hold of it. Raises `ConnectionError` at its end.
        """
        early = self._protocol.read()
        if early:
            return early
        self._read_open(most)
        return self._protocol.read()

    def _read_open(self, most: int) -> None:
        if not (self._protocol.open and self._protocol.waiting):
            raise Closed("the response has ended")
        self._read(most)

    def _read(self, most: int) -> None:
        data = self.socket.recv(most)
        if data:
            self._protocol.receive(data)
        else:
            self._protocol.receive_end()

    def close(self) -> None:
        """Close it."""
        self.socket.close()


class EventStream:
    """A blocking connection that receives the server-sent events that follow the id `last_id`."""

    def __init__(
        self, host: str, port: int, *, target: str, last_id: int, timeout: float = TIMEOUT
    ) -> None:
        self._connection = Connection(host, port, timeout)
        self._parser = EventParser()
        self._connection.send("GET", target, headers=_following(last_id))
        self.status = self._connection.receive_status()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, most: int = _READ) -> list[Event]:
        """Wait for at most so many bytes; return the events that they complete.

        Raises `ConnectionError` at the end of the stream.
        """
        return self._parser.feed(self._connection.read_body(most))

    def events(self) -> Iterator[Event]:
        """Yield events as they come. Raises as `read` does."""
        while True:
            yield from self.read()

    def close(self) -> None:
        """Close it."""
        self._connection.close()


class AsyncConnection(asyncio.Protocol):
    """A keep-alive connection under asyncio, and one request at a time on it."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._protocol = ClientProtocol()
        self._waiter: asyncio.Future[Response] | None = None

    @property
    def open(self) -> bool:
        """Whether a request may be sent."""
        return self._protocol.open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect a response."""
        try:
            self._protocol.receive(data)
        except ValueError as error:
            self._fail(error)
            self.close()
            return
        if not self._protocol.waiting:
            self._answer()
            if not self.open:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the response, or fail the request under way: its outcome is unknown."""
        self._protocol.receive_end()
        try:
            self._answer()
        except Closed as error:
            self._fail(error)

    def _answer(self) -> None:
        response = self._protocol.response()
        if response is not None and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(response)

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def close(self) -> None:
        """Close it."""
        self._protocol.open = False
        self._transport.close()

    async def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> Response:
        """Send a request, and return its response. Raises `Closed`, and `ValueError` if it is none.

        A caller that gives up waiting has to close the connection.
        """
        if self._protocol.waiting:
            raise RuntimeError("a request is under way")
        data = self._protocol.request(method, target, body, headers)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            return await self._waiter
        finally:
            self._waiter = None


class AsyncEventStream(asyncio.Protocol):
    """The same under asyncio."""

    _transport: asyncio.Transport

    def __init__(self, target: str, last_id: int) -> None:
        #: done with the status when the head has arrived; fails with `Closed` if none arrives
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[Event | ValueError | None] = asyncio.Queue()
        self._request = encode_request("GET", target, headers=_following(last_id))
        self._protocol = ClientProtocol()
        self._parser = EventParser()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.expect()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Collect events."""
        try:
            self._protocol.receive(data)
            events = self._parser.feed(self._protocol.read())
        except ValueError as error:
            self._events.put_nowait(error)
            self._transport.abort()
            return
        if self._protocol.head is not None and not self.status.done():
            self.status.set_result(self._protocol.head.status)
        for event in events:
            self._events.put_nowait(event)
        if not self._protocol.waiting:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream."""
        if not self.status.done():
            self.status.set_exception(Closed("the connection was closed"))
            # Its reader may have gone.
            self.status.exception()
        self._events.put_nowait(None)

    async def receive(self) -> Event | None:
        """Wait for the next event; None at the end of the stream.

        Raises `ValueError` for bytes that are no response, or no events.
        """
        event = await self._events.get()
        if isinstance(event, ValueError):
            raise event
        return event

    def close(self) -> None:
        """Close it."""
        self._transport.close()


def _following(last_id: int) -> dict[str, str]:
    return {"Accept": "text/event-stream", "Last-Event-ID": str(last_id)}
