"""Bounds on what requests use together: time, memory, followers of the feed.

The rule: each bound is an object of its own, and a request gives back in a `finally` what it took.
"""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from kvactor.errors import Overloaded, TooManySubscribers

#: Bytes of a body or a response up to which it does not count against the budget.
SMALL = 64 * 1024

#: Bytes that a client has to take within `write_timeout`, unless it takes all; streams are written in
#: chunks of this size.
CHUNK_SIZE = 64 * 1024

#: Files that the server opens beside connections: the data, the log, the loop's own.
OTHER_FILES = 100


class Deadlines:
    """Waits that have a limit, and that end when the server stops."""

    def __init__(self) -> None:
        # In the order in which they began, so that runs are alike (P9).
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

    def stop(self) -> None:
        """End all waits, and every later one at once."""
        self.stopping = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)


class InFlightBudget:
    """Bytes of large bodies and responses that may be under way at a time.

    A request that has any holds a `Lease` of its own, until its response is sent. Bodies and responses
    of at most `SMALL` bytes need none: the number of connections bounds those.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes that are held."""
        return self._used

    def share(self, maximum: int) -> int:
        """Return how many bytes a page should have: `maximum`, or half of what is left. Never less than
        `SMALL`, so that a client that pages through gets to the end.
        """
        return min(maximum, max((self._size - self._used) // 2, SMALL)) if self._used else maximum

    def check(self, size: int, held: int) -> None:
        """Raise `Overloaded` if fewer than `size` bytes are left, and other requests hold some: a
        request that is alone is never refused. `held` is what this request holds.
        """
        if size > self._size - self._used and self._used > held:
            raise Overloaded(
                f"Requests and answers of {self._used} bytes are under way already. Try again later."
            )

    def move(self, size: int) -> None:
        """Count bytes that a lease takes, or, negative, gives back."""
        self._used += size


class Lease(msgspec.Struct, gc=False, eq=False):
    """Bytes of the budget that one request holds."""

    budget: InFlightBudget
    size: int = 0

    def check(self, size: int) -> None:
        """Raise `Overloaded` if so many more bytes are not left."""
        self.budget.check(size, self.size)

    def acquire(self, size: int, *, refuse: bool = True) -> None:
        """Hold so many more bytes. With `refuse`, raises `Overloaded` if they are not left."""
        if refuse:
            self.budget.check(size, self.size)
        self.size += size
        self.budget.move(size)

    def release(self) -> None:
        """Give back all that is held."""
        self.budget.move(-self.size)
        self.size = 0


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
