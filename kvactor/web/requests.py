"""What comes in: paths, headers and bodies, taken apart strictly and once."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from aiohttp import web
from multidict import istr

from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.messages import Answer, Scope, TransactionRef
from kvactor.errors import (
    BodyTimeout,
    BodyTooLarge,
    ChecksFailed,
    InvalidKey,
    InvalidRequest,
    KeyNotFound,
    KvactorError,
    Overloaded,
    PreconditionFailed,
    Stopping,
)
from kvactor.settings import Settings
from kvactor.web.answers import TRANSACTION

log = logging.getLogger(__name__)

T = TypeVar("T")
Q = TypeVar("Q", bound=msgspec.Struct)

IDEMPOTENCY_KEY = istr("Idempotency-Key")
MAX_IDEMPOTENCY_KEY = 255
#: Headers that make a write what it is, beside its target and its body.
_DECISIVE = ("Content-Type", "If-Match", "If-None-Match", TRANSACTION)

_TRANSFER_ENCODING = istr("Transfer-Encoding")

#: More than any revision has, and few enough for Python to read.
_MAX_DIGITS = 20

#: Bytes of a body or an answer that do not count as large.
SMALL = 64 * 1024

_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


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


def within(request: web.Request, otherwise: Scope) -> TransactionRef:
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


def once_of(request: web.Request, body: bytes = b"") -> IdempotencyKey | None:
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
    return IdempotencyKey(
        blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest(), fingerprint.digest()
    )


class Patience:
    """Waits that have a limit, and that a stop of the server ends."""

    def __init__(self) -> None:
        # In the order in which they began: they end in the same order each time (P9).
        self._waits: dict[asyncio.Timeout, None] = {}
        self.stopping = False

    @asynccontextmanager
    async def limit(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise `TimeoutError` after so many seconds (None: never), or when the server stops."""
        async with asyncio.timeout(0 if self.stopping else seconds) as wait:
            self._waits[wait] = None
            try:
                yield
            finally:
                del self._waits[wait]

    async def stop(self, _: web.Application) -> None:
        """End all waits, and those that would begin."""
        self.stopping = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)


class Room:
    """Room for the bodies and answers that are under way, in bytes.

    A request takes it as it goes on, and gives it back when its task ends: when the client has its
    answer. What has at most `SMALL` bytes takes none: of those, the number of connections is the bound.
    """

    def __init__(self, settings: Settings) -> None:
        self._size = self._free = settings.max_in_flight_size
        self._taken: dict[asyncio.Task[Any], int] = {}

    def take(self, size: int, *, refuse: bool = True) -> None:
        """Take room for the running task. Raises `Overloaded` if there is none, and it may `refuse`."""
        if size <= SMALL or (task := asyncio.current_task()) is None:
            return
        if refuse:
            self.check(size)
        if task not in self._taken:
            task.add_done_callback(self._end)
        self._taken[task] = self._taken.get(task, 0) + size
        self._free -= size

    def check(self, size: int) -> None:
        """Raise `Overloaded` if there is less room, and others than the running task have the rest."""
        if size > self._free and self._taken.keys() - {asyncio.current_task()}:
            raise Overloaded(
                f"Requests and answers of {self._size - self._free} bytes are under way already. "
                "Try again later."
            )

    def left(self, most: int) -> int:
        """Return how many bytes a page should have: `most`, or half of what others leave. Always some,
        so that who reads on gets to the end.
        """
        return min(most, max(self._free // 2, SMALL)) if self._taken else most

    def give_back(self) -> None:
        """Give back what the running task has taken, though it goes on."""
        task = asyncio.current_task()
        if task in self._taken:
            task.remove_done_callback(self._end)
            self._end(task)

    def _end(self, task: "asyncio.Task[Any]") -> None:
        self._free += self._taken.pop(task)


class Bodies:
    """Reads the requests' bodies, each within `body_timeout`, and none beyond the server's stop:
    aiohttp drops what arrives after that, so nobody waits for it.
    """

    def __init__(self, settings: Settings, patience: Patience, room: Room) -> None:
        self._timeout = settings.body_timeout
        self._most = settings.max_body_size
        self._patience = patience
        self._room = room

    async def read(self, request: web.Request) -> bytes:
        """Return a request's body.

        Raises `BodyTooLarge`, `BodyTimeout`, `Overloaded`, `Stopping`, and `InvalidRequest` if it is
        cut off or malformed.
        """
        if request.headers.get(_TRANSFER_ENCODING, "chunked").lower() != "chunked":
            raise InvalidRequest("A body may be chunked; no other transfer coding is understood.")
        content = request.content
        try:
            if content.is_eof():
                whole = content.read_nowait()
                self._count(len(whole))
                return whole
            body, counted = bytearray(), 0
            async with self._patience.limit(self._timeout):
                while piece := await content.readany():
                    body += piece
                    counted = self._count(len(body), counted)
            return bytes(body)
        except TimeoutError:
            if self._patience.stopping:
                raise Stopping("The server is shutting down. Nothing was done.") from None
            raise BodyTimeout(f"The body has not arrived within {self._timeout:g} s.") from None
        except (web.RequestPayloadError, ConnectionError) as error:
            log.info("the body of %s %s was broken off: %s", request.method, request.raw_path, error)
            raise InvalidRequest(f"The body cannot be read: {error}") from None

    def _count(self, size: int, counted: int = 0) -> int:
        """Take room for what was not counted yet, unless it is little; return what is counted now."""
        if size > self._most:
            raise BodyTooLarge(f"The body is larger than max_body_size allows: {self._most} bytes.")
        if size - counted <= SMALL:
            return counted
        self._room.take(size - counted)
        return size


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


def missing(answer: Answer[Any]) -> KeyNotFound:
    """Return the error that a read of a missing key gets."""
    error = KeyNotFound("Key not found")
    error.revision = answer.revision
    return error


def single(error: KvactorError) -> KvactorError:
    """Return what the error of a batch of one means to a request that is no batch."""
    if isinstance(error, ChecksFailed):
        failed = PreconditionFailed(
            "The key is not what the precondition says. Read it again, and decide anew."
        )
        failed.revision = error.revision
        return failed
    error.details = {name: value for name, value in error.details.items() if name != "operation"}
    return error
