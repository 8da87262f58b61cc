"""Long pure work in steps: between two, the event loop serves other requests."""

import asyncio
from collections import deque
from collections.abc import Generator
from typing import TypeVar

R = TypeVar("R")


def at_once(steps: Generator[None, None, R]) -> R:
    """Return the result of such work, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result


async def in_steps(steps: Generator[None, None, R]) -> R:
    """Return the result of work that yields after each of its steps. Raises what it raises."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        await asyncio.sleep(0)


class Turnstile:
    """Lets whoever waits through in order, one a turn of the event loop.

    So many large responses together hold the loop no longer than one chunk of one of them.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def pass_through(self) -> None:
        """Wait for a turn."""
        loop = asyncio.get_running_loop()
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.append(place)
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn)
        await place

    def _turn(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                break
        self._turning = bool(self._waiting)
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)
