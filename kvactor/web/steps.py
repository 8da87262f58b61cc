"""Long pure work in steps: between two, the event loop serves other requests."""

import asyncio
from collections.abc import Generator
from typing import TypeVar

R = TypeVar("R")


async def in_steps(steps: Generator[None, None, R]) -> R:
    """Return the result of work that yields after each of its steps. Raises what it raises."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        await asyncio.sleep(0)
