"""Bounds on what requests use together: time, followers of the feed. (`core.memory`: memory.)

The rule: each bound is an object of its own, and a request gives back in a `finally` what it took.
"""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar

from kvactor.errors import TooManySubscribers

#: Bytes that a client has to take within `write_timeout`, unless it takes all; streams are written in
#: chunks of this size.
CHUNK_SIZE = 64 * 1024

#: Files that the server opens beside connections: the data, the log, the loop's own.
OTHER_FILES = 100


class Waits:
    """What one connection waits for. Once its client has left, nothing is waited for any more."""

    __slots__ = ("_under_way", "left")

    def __init__(self) -> None:
        self._under_way: list[asyncio.Timeout] = []
        #: Has the client left, or said that it sends no more?
        self.left = False

    def leave(self) -> None:
        """End what is waited for now, and every later wait at once."""
        self.left = True
        _end(self._under_way)

    @contextmanager
    def during(self, wait: asyncio.Timeout) -> Iterator[None]:
        """Let `leave` end a wait."""
        self._under_way.append(wait)
        try:
            yield
        finally:
            self._under_way.remove(wait)


#: The waits of the connection whose request this is. A connection sets it for its task; each request's
#: own task inherits it, and no request pays for that.
WAITS: ContextVar[Waits] = ContextVar("WAITS")


class Deadlines:
    """Waits that have a limit, and that end when the server stops or their client leaves."""

    def __init__(self) -> None:
        # In the order in which they began, so that runs are alike (P9).
        self._waits: dict[asyncio.Timeout, None] = {}
        self._stopped = False

    @property
    def stopping(self) -> bool:
        """Does this request have to end, because the server stops or its client has left?"""
        waits = WAITS.get(None)
        return self._stopped or (waits is not None and waits.left)

    @asynccontextmanager
    async def limit(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise `TimeoutError` after so many seconds (None: never), or when the request has to end."""
        waits = WAITS.get(None)
        async with asyncio.timeout(0 if self.stopping else seconds) as wait:
            self._waits[wait] = None
            try:
                with nullcontext() if waits is None else waits.during(wait):
                    yield
            finally:
                del self._waits[wait]

    def stop(self) -> None:
        """End all waits, and every later one at once."""
        self._stopped = True
        _end(self._waits)


def _end(waits: Iterable[asyncio.Timeout]) -> None:
    for wait in waits:
        if not wait.expired():
            wait.reschedule(0)


class SubscriberLimit:
    """The number of requests that follow the changes."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.count = 0

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        """Count a request while it follows. Raises `TooManySubscribers`."""
        if self.count >= self._maximum:
            raise TooManySubscribers(
                f"{self._maximum} requests follow the changes already. Try again later."
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


def connections_possible() -> int:
    """Let the process open as many files as it may; return how many of them can be connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        hard = soft  # as on systems that say "unlimited" and do not mean it
    return max(1, (1 << 31 if hard == resource.RLIM_INFINITY else hard) - OTHER_FILES)
