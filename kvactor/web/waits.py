"""Waits of requests: each has a limit in time, and ends when the server stops, its client is gone, or
the client's next request has waited behind it for long.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar


class Waits:
    """What one connection waits for. Once its client is gone, nothing is waited for any more."""

    __slots__ = ("_under_way", "client_gone", "hurried")

    def __init__(self) -> None:
        self._under_way: list[asyncio.Timeout] = []
        #: Has the client gone, or said that it sends no more?
        self.client_gone = False
        #: Have requests waited for long behind the one under way?
        self.hurried = False

    def leave(self) -> None:
        """End what is waited for now, and every later wait at once."""
        self.client_gone = True
        _end(self._under_way)

    def hurry(self) -> None:
        """End what is waited for now, and every later wait at once, until `hurried` is taken back."""
        self.hurried = True
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
    """Waits that have a limit, and that end when the server stops or their connection's `Waits` end."""

    def __init__(self) -> None:
        # In the order in which they began, so that runs are alike (P9).
        self._waits: dict[asyncio.Timeout, None] = {}
        self._stopped = False

    @property
    def must_end(self) -> bool:
        """Must this request wait for nothing more?"""
        waits = WAITS.get(None)
        return self._stopped or (waits is not None and (waits.client_gone or waits.hurried))

    @asynccontextmanager
    async def limit(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise `TimeoutError` after so many seconds (None: never), or when the request has to end."""
        waits = WAITS.get(None)
        async with asyncio.timeout(0 if self.must_end else seconds) as wait:
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
