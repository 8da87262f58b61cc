"""Long pure work in steps: between two, the event loop serves other requests."""

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from io import BytesIO
from typing import Final, TypeVar

from kvactor.api.values import encode

A = TypeVar("A")
R = TypeVar("R")

#: Items that are taken apart or encoded in one step: about a millisecond.
ITEMS_PER_STEP: Final = 300

#: Bytes that are encoded in one step, about.
BYTES_PER_STEP: Final = 1 << 20


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


def join(pieces: Iterable[bytes | memoryview], step: int) -> Generator[None, None, bytes]:
    """Copy pieces into one, about `step` bytes in each step."""
    whole = BytesIO()
    room = step
    for piece in pieces:
        for start in range(0, len(piece), step):
            if room <= 0:
                room = step
                yield
            room -= whole.write(piece[start : start + step])
    # It hands over what it has collected: nothing is copied.
    return whole.getvalue()


def each(function: Callable[[A], R], items: Sequence[A]) -> Generator[None, None, list[R]]:
    """Return the function's results for the items, in steps."""
    results: list[R] = []
    for first in range(0, len(items), ITEMS_PER_STEP):
        if first:
            yield
        results += map(function, items[first : first + ITEMS_PER_STEP])
    return results


def encoded(values: Iterable[object]) -> Generator[None, None, bytes]:
    """Return values as JSON with commas between them, in steps. They are taken one after another, so
    that an iterator makes them in steps, too.
    """
    pieces: list[bytes] = []
    size = 0
    step_end = BYTES_PER_STEP
    for index, value in enumerate(values):
        piece = encode(value)
        pieces.append(piece)
        size += len(piece)
        if index % ITEMS_PER_STEP == ITEMS_PER_STEP - 1 or size > step_end:
            step_end = size + BYTES_PER_STEP
            yield
    return b",".join(pieces)


class Turnstile:
    """Lets whoever waits through in order, one a turn of the event loop.

    So many large responses together hold the loop no longer than one chunk or step of one of them.
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

    async def take(self, steps: Generator[None, None, R]) -> R:
        """Return the result of work that yields after each of its steps: one of them in a turn. Raises
        what it raises.
        """
        while True:
            await self.pass_through()
            try:
                next(steps)
            except StopIteration as end:
                result: R = end.value
                return result

    def _turn(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                break
        self._turning = bool(self._waiting)
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)
