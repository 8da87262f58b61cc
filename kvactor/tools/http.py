"""The client's side of HTTP/1.1: requests as bytes, and responses from bytes. It has no socket and no
loop (sans-IO); `connections` gives it both.

The rule: nothing is sent twice, and nothing is sent unasked. A connection that ends before a response
is whole raises `Closed`: whether the request was carried out is unknown, and the caller says so.

httptools parses (llhttp, in C): 3 us for a response, where h11 takes 117 us. The load generator of the
benchmark must cost less than the server that it loads.
"""

from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import httptools
import msgspec
from multidict import CIMultiDict

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

_END_OF_HEAD: Final = b"\r\n\r\n"


class Closed(ConnectionError):
    """The connection has ended before a response was whole."""


class Head(msgspec.Struct, frozen=True):
    """The status and the headers of a response."""

    status: int
    headers: CIMultiDict[str]


class Response(msgspec.Struct, frozen=True):
    """A whole response."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the request succeeded: the status is below 300."""
        return self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def revision(self) -> int:
        """The revision at which the response was true; 0 if it names none."""
        return int(self.headers.get("Kvactor-Revision", "0"))

    @property
    def time(self) -> int:
        """When the response was decided: the server's clock, in milliseconds since the epoch; 0 if it
        does not say.
        """
        return int(self.headers.get("Kvactor-Time", "0"))

    @property
    def etag(self) -> int:
        """The revision in the ETag; 0 if there is none, or if it is that of a draft."""
        tag = self.headers.get("ETag", "").strip('"')
        return int(tag) if tag.isdigit() else 0

    @property
    def code(self) -> str:
        """What went wrong: a problem's code, or else its sentence, or else the status."""
        try:
            problem = self.json()
        except msgspec.DecodeError:
            return str(self.status)
        if not isinstance(problem, dict):
            return str(self.status)
        return str(problem.get("code") or problem.get("error") or self.status)

    def json(self) -> Any:
        """Return what the body says. Raises `msgspec.DecodeError` if it is not JSON."""
        return msgspec.json.decode(self.body)


def encode_request(
    method: str,
    target: str,
    body: bytes = b"",
    headers: Mapping[str, str] = NO_HEADERS,
    host: str = "localhost",
) -> bytes:
    """Return the bytes of a request. POST and PUT carry a Content-Length in any case."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = f"Content-Length: {len(body)}\r\n" if body or method in {"POST", "PUT"} else ""
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}{length}\r\n".encode() + body


class ClientProtocol:
    """One connection's requests and responses, in order.

    `expect` announces a request, `receive` takes what has arrived, and `response` returns the next
    response once it is whole. For a body without an end, `head` and `read` return what is there so far.
    """

    def __init__(self) -> None:
        #: whether another request may be sent
        self.open = True
        #: of the response that is arriving, or that has arrived last; None: no head has arrived
        self.head: Head | None = None
        self._expected: deque[str] = deque()
        self._responses: deque[Response] = deque()
        self._fields: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        #: of a response to HEAD, what has arrived of its head
        self._bodiless = b""
        self._parser = httptools.HttpResponseParser(self)

    def expect(self, method: str = "GET") -> None:
        """Announce a request whose bytes the caller writes. Raises `Closed` if none may be sent.

        Requests may be pipelined, but for HEAD: raises `RuntimeError`.
        """
        if not self.open:
            raise Closed("the connection is closed")
        if self._expected and "HEAD" in {method, self._expected[-1]}:
            raise RuntimeError("HEAD is not pipelined")
        if not self._expected:
            self.head = None
        self._expected.append(method)

    def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> bytes:
        """Announce a request, and return its bytes. Raises as `expect` does."""
        self.expect(method)
        return encode_request(method, target, body, headers)

    @property
    def waiting(self) -> bool:
        """Whether a response is to come."""
        return bool(self._expected)

    def receive(self, data: bytes) -> None:
        """Take bytes that have arrived. Raises `ValueError` if they are no response, or unasked for."""
        if not self._expected:
            raise ValueError(f"nothing was asked, and this has come: {data[:80]!r}")
        try:
            if self._expected[0] == "HEAD":
                self._receive_bodiless(data)
            else:
                self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise ValueError(f"more than the response has come: {error.__context__}") from error
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ValueError(f"no HTTP response has come: {error!r}") from error

    def receive_end(self) -> None:
        """Take the end of the connection, which ends a body without a length. Idempotent."""
        if self._expected and self.head is not None and not _is_delimited(self.head):
            self._complete(self.head)
        self.open = False

    def response(self) -> Response | None:
        """Return the next response, or None if it is not whole. Raises `Closed` if it will not be."""
        if self._responses:
            return self._responses.popleft()
        if not self.open:
            raise Closed("the connection was closed")
        return None

    def read(self) -> bytes:
        """Return what has arrived of the body since the last call. It is then no part of `response`."""
        body, self._body = b"".join(self._body), []
        return body

    # -- what httptools calls --

    def on_message_begin(self) -> None:
        """Begin a response."""
        if not self._expected:
            raise ValueError("a response that nobody asked for")
        self.head, self._fields, self._body = None, [], []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._fields.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Take the head. That of an interim response (1xx) is skipped: the final one follows."""
        status = self._parser.get_status_code()
        if status >= HTTPStatus.OK:
            self.head = Head(status, CIMultiDict(self._fields))

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """End a response."""
        if self.head is not None:
            self.open = self.open and self._parser.should_keep_alive()
            self._complete(self.head)

    def _complete(self, head: Head) -> None:
        self._expected.popleft()
        self._responses.append(Response(head.status, head.headers, self.read()))

    def _receive_bodiless(self, data: bytes) -> None:
        """Parse a head alone: httptools cannot be told that no body follows its Content-Length."""
        head, end, rest = (self._bodiless + data).partition(_END_OF_HEAD)
        if not end:
            self._bodiless = head
            return
        self._bodiless = b""
        self._parser.feed_data(head + end)
        if self._expected and self.head is not None:
            self.open = self.open and self.head.headers.get("Connection", "").lower() != "close"
            self._complete(self.head)
        self._parser = httptools.HttpResponseParser(self)
        if rest:
            self.receive(rest)


def _is_delimited(head: Head) -> bool:
    return "Content-Length" in head.headers or "Transfer-Encoding" in head.headers
