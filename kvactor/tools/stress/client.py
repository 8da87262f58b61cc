"""One connection to a server, and one request at a time on it.

The rule: nothing is sent twice, or behind somebody's back. An HTTP library may send a request again
on a new connection when the old one breaks; here, that is an outcome nobody knows, and the history
has to say so.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple, cast

import msgspec

#: Statuses whose answers have no body (RFC 9110, section 6.4.1).
_WITHOUT_BODY = {204, 304}

_NONE: Mapping[str, str] = MappingProxyType({})


class Closed(ConnectionError):
    """The connection has ended before an answer had come whole."""


class Answer(NamedTuple):
    """An answer: `revision` is where it was true, 0 if it does not say."""

    status: int
    revision: int
    etag: int
    body: bytes
    close: bool

    @property
    def ok(self) -> bool:
        """Was it done?"""
        return self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def code(self) -> str:
        """What went wrong, as the server has it."""
        try:
            problem = msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return str(self.status)
        return str(problem.get("code") or problem.get("error") or self.status)


def request(method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = _NONE) -> bytes:
    """Return the bytes of a request."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = f"Content-Length: {len(body)}\r\n" if body or method in {"POST", "PUT"} else ""
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}{length}\r\n".encode() + body


def parse(received: bytes) -> Answer | None:
    """Return the answer that was received, or None if it is not all there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    status_line, *lines = received[:end].decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    status = int(status_line.split(" ")[1])
    length = 0 if status in _WITHOUT_BODY else int(fields["content-length"])
    body = received[end + 4 :]
    if len(body) < length:
        return None
    if len(body) > length:
        raise ValueError(f"more than the answer: {body[length:][:80]!r}")
    return Answer(
        status,
        int(fields.get("kvactor-revision", "0")),
        int(fields.get("etag", '"0"').strip('"')),
        body,
        fields.get("connection") == "close",
    )


class Connection(asyncio.Protocol):
    """A keep-alive connection."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.open = False
        self._received = b""
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be open."""
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self._received += data
        try:
            answer = parse(self._received)
        except ValueError as error:
            self._fail(error)
            self.close()
            return
        if answer is not None:
            self._received = b""
            if answer.close:
                self.close()
            if self._answer is None:
                self.close()
            elif not self._answer.done():
                self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody knows what became of a request under way."""
        self.open = False
        self._fail(Closed("the connection was closed"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def close(self) -> None:
        """Close it."""
        self.open = False
        self._transport.close()

    async def ask(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = _NONE
    ) -> Answer:
        """Send a request and return its answer. Raises `Closed`, and `ValueError` if it is none.

        Whoever gives up waiting has to close the connection.
        """
        if not self.open:
            raise Closed("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request(method, target, body, headers))
        try:
            return await self._answer
        finally:
            self._answer = None


class Stream(asyncio.Protocol):
    """Follows the changes as server-sent events, asked for as by HTTP/1.0: they go on to the close."""

    _transport: asyncio.Transport

    def __init__(self, target: str, since: int) -> None:
        #: what was received, line by line; None at the end
        self.lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._target = target
        self._since = since
        self._rest = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(
            f"GET {self._target} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            f"Last-Event-ID: {self._since}\r\n\r\n".encode()
        )

    def close(self) -> None:
        """Ask no more."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take lines apart."""
        *lines, self._rest = (self._rest + data.decode("latin-1")).split("\n")
        for line in lines:
            self.lines.put_nowait(line)

    def connection_lost(self, exc: Exception | None) -> None:
        """There will be no more."""
        self.lines.put_nowait(None)
