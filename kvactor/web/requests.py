"""What comes in: paths, headers and bodies, taken apart strictly and once."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from multidict import istr

from kvactor.errors import BodyTimeout, BodyTooLarge, CrossOrigin, InvalidKey, InvalidRequest, Stopping
from kvactor.messages import Once, Scope, Within
from kvactor.web.answers import TRANSACTION

T = TypeVar("T")
Q = TypeVar("Q", bound=msgspec.Struct)

IDEMPOTENCY_KEY = istr("Idempotency-Key")
MAX_IDEMPOTENCY_KEY = 255
#: Headers that make a write what it is, beside its target and its body.
_DECISIVE = ("Content-Type", "If-Match", "If-None-Match", TRANSACTION)

#: More than any revision has, and few enough for Python to read.
_MAX_DIGITS = 20

_ORIGIN = istr("Origin")
_VERSIONS = (HttpVersion11, HttpVersion10)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


def check_form(request: web.Request) -> None:
    """Raise `InvalidRequest` for another HTTP than 1.0 and 1.1, and for a target that is no path;
    `CrossOrigin` for what a page from elsewhere has sent.
    """
    if request.version not in _VERSIONS or request.raw_path[:1] != "/":
        raise InvalidRequest("A request is HTTP/1.1 or HTTP/1.0, and its target begins with /.")
    origin = request.headers.get(_ORIGIN)
    if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
        raise CrossOrigin(f"Pages of {origin} may not speak to this server.")


def key_in_path(request: web.Request, prefix: str) -> bytes:
    """Return the rest of the request's path behind `prefix`, decoded once.

    Raises `InvalidKey` unless it is UTF-8.
    """
    path = request.raw_path
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


def revision_of(text: str) -> int | None:
    """Return the revision that a header names, or None if it names none."""
    return int(text) if len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit() else None


def within(request: web.Request, otherwise: Scope) -> Within:
    """Return in which transaction a request speaks: the isolated one that its header names, or else
    `otherwise`.
    """
    return request.headers.get(TRANSACTION, otherwise)


def query_of(request: web.Request, kind: type[Q]) -> Q:
    """Return what the request's query says, each name once. Raises `InvalidRequest`."""
    text = request.raw_path.partition("?")[2]
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
        names = dict(pairs)
        if len(names) < len(pairs):
            raise InvalidRequest("The query says something twice.")
        return msgspec.convert(names, kind, strict=False)
    except UnicodeDecodeError:
        raise InvalidRequest("The query is not UTF-8.") from None
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidRequest(f"The query is not what is expected here: {error}") from None


def once_of(request: web.Request, body: bytes = b"") -> Once | None:
    """Return what makes a write with an Idempotency-Key the same as another, or None without one.

    Raises `InvalidRequest` for a key of no or more than 255 characters.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(f"An Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters.")
    what = [request.method, request.raw_path, *(request.headers.get(name, "") for name in _DECISIVE)]
    fingerprint = blake2b(
        "\n".join(what).encode("utf-8", "surrogateescape") + b"\n" + body, digest_size=16
    )
    return Once(
        blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest(), fingerprint.digest()
    )


class Patience:
    """Waits that have a limit, and that a stop of the server ends."""

    def __init__(self) -> None:
        self._waits: set[asyncio.Timeout] = set()
        self.stopping = False

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """Raise `TimeoutError` after so many seconds, or when the server stops."""
        async with asyncio.timeout(0 if self.stopping else seconds) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)

    async def stop(self, _: web.Application) -> None:
        """End all waits, and those that would begin."""
        self.stopping = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)


class Bodies:
    """Reads the requests' bodies, each within `timeout` seconds, and none beyond the server's stop:
    aiohttp drops what arrives after that, so nobody waits for it.
    """

    def __init__(self, timeout: float, patience: Patience) -> None:
        self._timeout = timeout
        self._patience = patience

    async def read(self, request: web.Request) -> bytes:
        """Return a request's body.

        Raises `BodyTooLarge`, `BodyTimeout`, `Stopping`, and `InvalidRequest` if it is cut off or
        malformed.
        """
        try:
            if request.content.is_eof():
                return await request.read()
            async with self._patience.limit(self._timeout):
                return await request.read()
        except TimeoutError:
            if self._patience.stopping:
                raise Stopping("The server is shutting down. Nothing was done.") from None
            raise BodyTimeout(f"The body has not arrived within {self._timeout:g} s.") from None
        except HTTPRequestEntityTooLarge as error:
            raise BodyTooLarge(f"The body is larger than max_body_size allows. {error.text}") from None
        except (web.RequestPayloadError, ConnectionError) as error:
            raise InvalidRequest(f"The body cannot be read: {error}") from None


def parse(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return what a JSON body says.

    Raises `InvalidRequest` unless it is UTF-8, JSON, and of the decoder's type.
    """
    try:
        # The decoder does not look into strings that it skips or passes on.
        return decoder.decode(body if body.isascii() else body.decode())
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body is not what is expected here: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
