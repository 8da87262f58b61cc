"""Long pure work in steps: between two, the event loop serves other requests."""

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from io import BytesIO
from types import GeneratorType
from typing import Final, TypeVar

from kvactor.api.values import encode
from kvactor.core.memory import Lease

A = TypeVar("A")
R = TypeVar("R")

#: Items that are taken apart or encoded in one step: about a millisecond.
ITEMS_PER_STEP: Final = 300

#: Bytes after which a step of encoding ends. One value more may be encoded in it.
BYTES_PER_STEP: Final = 1 << 18

#: Work that yields after each of its steps: how many bytes it is going to take, beside those that it
#: has taken, or None.
Steps = Generator[int | None, None, R]


def at_once(steps: Steps[R]) -> R:
    """Return the result of such work, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result


def join(pieces: Iterable[bytes | memoryview], step: int) -> Steps[bytes]:
    """Copy pieces into one, about `step` bytes in each step."""
    whole = BytesIO()
    room = step
    for piece in pieces:
        for start in range(0, len(piece), step):
            if room <= 0:
                room = step
                yield None
            room -= whole.write(piece[start : start + step])
    # It hands over what it has collected: nothing is copied.
    return whole.getvalue()


def each(function: Callable[[A], R], items: Sequence[A]) -> Steps[list[R]]:
    """Return the function's results for the items, in steps."""
    results: list[R] = []
    for first in range(0, len(items), ITEMS_PER_STEP):
        if first:
            yield None
        results += map(function, items[first : first + ITEMS_PER_STEP])
    return results


def encoded(values: Iterable[object]) -> Steps[bytes]:
    """Return values as JSON with commas between them, in steps. They are taken one after another, so
    that an iterator makes them in steps, too. One may be work in steps itself, whose result is JSON.
    """
    pieces: list[bytes] = []
    size = 0
    step_end = BYTES_PER_STEP
    for index, value in enumerate(values):
        piece = (yield from value) if isinstance(value, GeneratorType) else encode(value)
        pieces.append(piece)
        size += len(piece)
        if index % ITEMS_PER_STEP == ITEMS_PER_STEP - 1 or size > step_end:
            step_end = size + BYTES_PER_STEP
            yield None
    return b",".join(pieces)


class Turnstile:
    """Lets whoever waits through in order, one a turn of the event loop.

    So many large responses together hold the loop no longer than one chunk or step of one of them.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    def enter(self) -> asyncio.Future[None] | None:
        """Return what is done when the turn of whoever asks has come; None: it has come."""
        loop = asyncio.get_running_loop()
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn)
            return None
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.append(place)
        return place

    async def pass_through(self) -> None:
        """Wait for a turn."""
        if place := self.enter():
            await place

    async def take(self, steps: Steps[R], lease: Lease | None = None) -> R:
        """Return the result of work, one step of it in a turn. What it takes is counted on `lease`.

        Raises what it raises, and `Overloaded`.
        """
        while True:
            await self.pass_through()
            try:
                size = next(steps)
            except StopIteration as end:
                result: R = end.value
                return result
            if size and lease is not None:
                lease.acquire(size)

    def _turn(self) -> None:
        self._turning = False
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                self._turning = True
                asyncio.get_running_loop().call_soon(self._turn)
                break
