"""What goes wrong, and at which step: drawn from the seed before the run, done between two callbacks.

Each fault is something that happens to servers. None excuses a wrong answer; some excuse a warning.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Final

from aiohttp.web_protocol import RequestHandler

from tests.simulation.world import World

#: Milliseconds by which somebody sets the clock.
JUMPS: Final = (-3_600_000, -40_000, -300, 300, 40_000, 3_600_000)

#: Bytes that are free on a disk that is nearly full.
NEARLY_NOTHING: Final = 1000
PLENTY: Final = 1 << 50


class Faults:
    """Interrupts a world at some steps, at first within the first `horizon`.

    Unless `backwards`, the clock is never set back.
    """

    def __init__(
        self, world: World, random: Random, number: int, horizon: int, *, backwards: bool = True
    ) -> None:
        self._world = world
        self._random = random
        self._jumps = [jump for jump in JUMPS if jump > 0 or backwards]
        kinds = random.choices(list(KINDS), list(KINDS.values()), k=number)
        steps = sorted(random.randrange(1, horizon) for _ in kinds)
        self._plan = list(zip(steps, kinds, strict=True))
        #: what was done, and at which step
        self.done: list[str] = []
        world.loop.interrupt = self._interrupt
        self._next()

    def end(self) -> None:
        """Do no more of them, and undo what lasts."""
        self._plan.clear()
        self._world.loop.at = 0
        self._world.disk.profile.failing_after = None

    @property
    def excuse(self) -> bool:
        """May the server have failed, and said so?"""
        return any("the disk will fail" in one for one in self.done)

    def _next(self) -> None:
        steps = self._world.loop.steps
        self._world.loop.at = max(steps + 1, self._plan[0][0]) if self._plan else 0

    def _interrupt(self) -> None:
        _, kind = self._plan[0]
        what = kind(self)
        if what is not None:
            # Otherwise there was nothing to do it to: the next step will try it.
            del self._plan[0]
            self.done.append(f"step {self._world.loop.steps}: {what}")
            self._world.loop.note(f"FAULT {what}")
        self._next()

    # -- each returns what it has done, if it was possible --

    def crash(self) -> str | None:
        """Kill the server."""
        life = self._world.life
        if not life.process.alive:
            return None
        life.crash()
        return "the server is killed"

    def stop(self) -> str | None:
        """Tell the server to stop; it is started again."""
        if not self._world.life.up:
            return None
        self._world.life.stop()
        return "the server is told to stop"

    def reset(self) -> str | None:
        """Break a connection."""
        ends = self._world.network.open_ends()
        if not ends:
            return None
        end = self._random.choice(ends)
        broken = end if self._random.random() < 0.5 else end.peer
        broken.abort()
        return f"the connection of {broken.name} breaks"

    def leave(self) -> str | None:
        """Let a client end its connection, with goodbye."""
        ends = self._world.network.open_ends()
        if not ends:
            return None
        end = self._random.choice(ends)
        end.peer.close()
        return f"{end.peer.name} leaves"

    def cancel(self) -> str | None:
        """Cancel what works on a request."""
        tasks = working(self._world)
        if not tasks:
            return None
        task = self._random.choice(tasks)
        task.cancel()
        return f"{task.get_name()} is cancelled"

    def jump(self) -> str | None:
        """Set the wall clock."""
        by = self._random.choice(self._jumps)
        self._world.offset += by
        return f"the clock jumps by {by} ms"

    def fail(self) -> str | None:
        """Let the disk fail, now or soon."""
        self._world.disk.profile.failing_after = self._random.randrange(3)
        return "the disk will fail"

    def fill(self) -> str | None:
        """Let the disk be nearly full, for some ticks."""
        world = self._world
        world.disk.profile.free = NEARLY_NOTHING
        world.loop.call_later(self._random.uniform(1, 4), self._make_room, context=world.context)
        return "the disk is nearly full"

    def _make_room(self) -> None:
        self._world.disk.profile.free = PLENTY

    def slow(self) -> str | None:
        """Let the disk be slow from now on."""
        self._world.disk.profile.delay = 0.3
        return "the disk is slow"


Fault = Callable[[Faults], str | None]

#: Every fault, and how likely it is.
KINDS: Final[dict[Fault, int]] = {
    Faults.crash: 4,
    Faults.stop: 2,
    Faults.reset: 3,
    Faults.leave: 1,
    Faults.cancel: 4,
    Faults.jump: 2,
    Faults.fail: 2,
    Faults.fill: 1,
    Faults.slow: 1,
}


def working(world: World) -> list[asyncio.Task[Any]]:
    """Return the server's tasks that work on requests, in the order of their creation."""
    process = world.life.process
    if not process.alive:
        return []
    return [task for task in process.tasks if not task.done() and _works(task)]


def _works(task: asyncio.Task[Any]) -> bool:
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", "")
    if name == RequestHandler._handle_request.__qualname__:
        return True
    frame = getattr(coroutine, "cr_frame", None)
    if name != RequestHandler.start.__qualname__ or frame is None:
        return False
    # Between two requests nobody cancels it but aiohttp itself, as it ends a connection.
    return bool(frame.f_locals["self"]._request_in_progress)
