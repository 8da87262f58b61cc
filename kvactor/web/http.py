"""Requests and responses as values, and strict parsers for the parts of a request.

The rule: nothing here knows a web framework, a connection or the owner. So the functions that
turn a request into a message, and an answer into a response, are pure.
"""

import re
from collections.abc import Awaitable, Mapping, Sequence
from hashlib import blake2b
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from multidict import MultiMapping, istr

from kvactor.api.values import JSON, encode
from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.memory import Lease
from kvactor.core.messages import (
    Answer,
    Message,
    Scope,
    TransactionRef,
)
from kvactor.errors import InvalidKey, InvalidRequest
from kvactor.web.steps import Steps

#: Characters of a field's value that an error quotes, at most.
MAX_QUOTED: Final = 100

R = TypeVar("R")
T = TypeVar("T")
Q = TypeVar("Q", bound=msgspec.Struct)

# Names of headers, hashed once.
REVISION = istr("Kvactor-Revision")
TIME = istr("Kvactor-Time")
TRANSACTION = istr("Kvactor-Transaction")
IDEMPOTENCY_KEY = istr("Idempotency-Key")
CONTENT_TYPE = istr("Content-Type")
IF_MATCH = istr("If-Match")
IF_NONE_MATCH = istr("If-None-Match")
ACCEPT = istr("Accept")

MAX_IDEMPOTENCY_KEY = 255
#: Headers that decide a write, beside its method, target and body.
_FINGERPRINTED = (CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH, TRANSACTION)

#: Digits: more than any revision has, and few enough for `int`.
_MAX_DIGITS = 20

_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
NO_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType({})


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request, read whole: its target as received, its headers by names in any case, and the
    parameters that the route's path names.
    """

    method: str
    target: str
    headers: MultiMapping[str]
    body: bytes = b""
    parameters: Mapping[str, str] = NO_PARAMETERS


class Response(msgspec.Struct, frozen=True, gc=False):
    """A response that was true at `revision`; `headers` are those beside the ones that all have.

    `time` is the owner's for it, in milliseconds since the epoch; 0: use that of the owner's answer.
    """

    revision: int
    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = NO_HEADERS
    time: int = 0


def json_response(
    revision: int,
    body: object,
    status: int = 200,
    headers: Mapping[str, str] = NO_HEADERS,
    time: int = 0,
) -> Response:
    """Return a response whose body is JSON."""
    return Response(revision, encode(body), status, JSON, headers, time)


class Stream(Protocol):
    """A response that is written as it comes."""

    async def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write, and return when the transport has no backlog left, except for the last chunk. Views
        share their memory with others.

        Raises `TimeoutError` when the server stops meanwhile, `Overloaded`, and `ConnectionError`.
        """

    def abort(self) -> None:
        """Close the connection without sending the rest."""


class Exchange(Protocol):
    """A request whose handler asks more than once, or streams."""

    request: Request
    #: what the request holds of the account of memory
    lease: Lease

    def ask(self, message: Message[R]) -> Awaitable[Answer[R]]:
        """Ask the owner. Raises what the owner answers, `Overloaded` and `Stopping`."""

    def take(self, steps: Steps[R]) -> Awaitable[R]:
        """Return the result of work in steps. Raises what it raises, and `Overloaded`."""

    async def stream(self, headers: Mapping[str, str]) -> Stream:
        """Begin a stream with these headers. Raises `ConnectionError`."""


class NoRoute(Exception):
    """No route has this path (404), or none of those with this path has this method (405, with the
    methods that there are), or none does what `Expect` asks for (417).
    """

    def __init__(self, status: HTTPStatus, allow: str = "") -> None:
        super().__init__(status.phrase)
        self.status = status
        self.allow = allow


# -- parts of a request --


def key_in_path(request: Request, prefix: str) -> bytes:
    """Return the part of the request's path after `prefix`, decoded once.

    Raises `InvalidKey` unless it is UTF-8.
    """
    path = request.target
    if not path.startswith(prefix):
        raise InvalidRequest(f"The path has to begin with {prefix} as it stands, without escapes.")
    path = path[len(prefix) :]
    if "?" in path:
        path = path.partition("?")[0]
    if "%" in path:
        if _BAD_ESCAPE.search(path):
            raise InvalidKey("The key in the path has a % that two hexadecimal digits do not follow.")
        key = unquote_to_bytes(path.encode("utf-8", "surrogateescape"))
    else:
        key = path.encode("utf-8", "surrogateescape")
    if not key.isascii():
        try:
            key.decode()
        except UnicodeDecodeError:
            raise InvalidKey("The key in the path is not UTF-8.") from None
    return key


def revision_in(text: str) -> int | None:
    """Return the revision that a header names, or None if it names none."""
    return int(text) if len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit() else None


def header_list(request: Request, name: istr) -> str | None:
    """Return a header that holds a list: its lines as one (RFC 9110, 5.3); None if it has none."""
    lines = request.headers.getall(name, None)
    return None if lines is None else lines[0] if len(lines) == 1 else ", ".join(lines)


def transaction(request: Request, default: Scope) -> TransactionRef:
    """Return the isolated transaction that the request's header names, or else `default`."""
    return request.headers.get(TRANSACTION, default)


def query_pairs(request: Request) -> dict[str, str]:
    """Return the fields of the query. Raises `InvalidRequest` if one comes twice."""
    text = request.target.partition("?")[2]
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError:
        raise InvalidRequest("The query is not UTF-8.") from None
    except ValueError as error:
        raise _unexpected_query(error) from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidRequest("The query says something twice.")
    return fields


def query(request: Request, kind: type[Q]) -> Q:
    """Return the query as a `kind`. Raises `InvalidRequest`."""
    fields = query_pairs(request)
    try:
        return msgspec.convert(fields, kind, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise _unexpected_field(fields, kind, error) from None


def _unexpected_field(fields: Mapping[str, str], kind: type[Q], error: Exception) -> InvalidRequest:
    """Return the error for a query: it names the field, and says what is expected or what it means."""
    words, _, place = str(error).partition(" - at `$.")
    name = place.rstrip("`")
    if name not in fields:
        return _unexpected_query(error)
    if not words.startswith("Expected"):
        # A field of several types: msgspec knows only one of them.
        field = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"][name]
        words = field.get("description", words)
    value = fields[name][:MAX_QUOTED]
    return InvalidRequest(f"{name}={value} in the query is not what is expected: {words}")


def _unexpected_query(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"The query is not what is expected here: {error}")


def idempotency_key(request: Request) -> IdempotencyKey | None:
    """Return the request's idempotency key and its fingerprint, or None without one.

    Raises `InvalidRequest` unless the key has 1 to 255 characters.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters.")
    parts = [request.method, request.target]
    parts += [header_list(request, name) or "" for name in _FINGERPRINTED]
    deciding = as_bytes("\n".join(parts)) + b"\n"
    return IdempotencyKey(_hash(as_bytes(key)), _hash(deciding, request.body))


def as_bytes(text: str) -> bytes:
    """Return a part of a request as it was received."""
    return text.encode("utf-8", "surrogateescape")


def _hash(*parts: bytes) -> bytes:
    whole = blake2b(digest_size=16)
    for part in parts:
        whole.update(part)
    return whole.digest()


def json_body(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the JSON body as the decoder's type.

    Raises `InvalidRequest` unless it is UTF-8, JSON, and of that type.
    """
    body = request.body
    try:
        if not body.isascii():
            # The decoder does not look into strings that it skips or passes on.
            body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body is not what is expected here: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
