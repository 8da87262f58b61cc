"""Bounds on what requests use together: time, followers of the feed. (`core.memory`: memory.)

The rule: each bound is an object of its own, and a request gives back in a `finally` what it took.
"""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from kvactor.errors import TooManySubscribers

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
