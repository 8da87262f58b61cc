"""An event loop without time, threads and sockets: its clock jumps to the next timer when nothing is
ready, and everything that it runs is a numbered step.

The rule: callbacks run in the order in which asyncio promises to run them. What may come in any order
(bytes, the disk, timers) is scheduled by whoever simulates it, at times that the seed decides.

What belongs to one process runs in its context, so that the process can die: none of its callbacks
is run after that.
"""

import asyncio
import hashlib
import heapq
import itertools
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds that a step takes. More than nothing, so that a busy server may also be overtaken by a timer.
STEP = 1e-6


class Stuck(Exception):
    """Nothing will happen any more, or not within the bounds of a run."""


class Trace:
    """What has happened, in order."""

    def __init__(self) -> None:
        self._events: list[tuple[float, str]] = []

    def note(self, time: float, what: str) -> None:
        self._events.append((time, what))

    def lines(self, last: int = 0) -> list[str]:
        """Return the last so many lines, or all."""
        return [f"{time:12.6f}  {what}" for time, what in self._events[-last:]]

    def digest(self) -> str:
        """Return what is the same for two runs if, and only if, all lines are."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()


class Process:
    """What can die. Its `context` says of each callback that it belongs here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        #: in the order of their creation
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = copy_context()
        self.context.run(_process.set, self)

    def bury(self) -> None:
        """End the tasks of a dead process for good, without a warning that they were never done.

        Their `finally` clauses run now, when they cannot do anything any more.
        """
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                if isinstance(coroutine, Coroutine):
                    coroutine.close()


_process: ContextVar[Process | None] = ContextVar("process", default=None)


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs callbacks one step at a time.

    `network` makes the connections. `at` is the step before which `interrupt` is called next (0:
    never). A run ends with `Stuck` after `max_steps`, or beyond `max_time` seconds of its clock.
    """

    def __init__(self, max_steps: int = 20_000, max_time: float = 3600.0) -> None:
        super().__init__()
        self.set_debug(False)
        self.trace = Trace()
        self.steps = 0
        self.at = 0
        self.interrupt: Callable[[], None] = _nothing
        self.connect: Callable[..., Coroutine[Any, Any, tuple[Any, Any]]] | None = None
        #: what callbacks have raised, and nobody has caught
        self.errors: list[str] = []
        self._max_steps = max_steps
        self._max_time = max_time
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._scheduled: list[asyncio.TimerHandle] = []
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[Any]] = []
        self._over = False
        self.set_exception_handler(lambda _, context: self._note_error(context))

    def time(self) -> float:
        return self._now

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        # Names by asyncio count on from run to run.
        name = f"{name or getattr(coro, '__qualname__', 'task')}#{next(self._numbers)}"
        if context is None:
            task = super().create_task(coro, name=name)
            process = _process.get()
        else:
            task = super().create_task(coro, name=name, context=context)
            process = context.get(_process)
        (self._tasks if process is None else process.tasks).append(task)
        return task

    async def create_connection(self, protocol_factory: Any, *args: Any, **_: Any) -> Any:
        """Connect through the simulated network, as `asyncio` has it."""
        if self.connect is None:
            raise ConnectionRefusedError
        return await self.connect(protocol_factory, *args)

    def note(self, what: str) -> None:
        """Add to the trace."""
        self.trace.note(self._now, what)

    def waiting(self, tasks: list[asyncio.Task[Any]] | None = None) -> list[str]:
        """Name those of `tasks` (else: of no process) that are not done, and where they wait."""
        return [_where(task) for task in (self._tasks if tasks is None else tasks) if not task.done()]

    def dispose(self, processes: list[Process]) -> None:
        """End whatever is left, and close."""
        self._over = True
        rest = Process("the rest")
        rest.tasks = self._tasks
        for process in [*processes, rest]:
            process.bury()
        self._ready.clear()
        self._scheduled.clear()
        self.close()

    # -- what BaseEventLoop asks of a loop --

    def _run_once(self) -> None:
        """Run one callback: the next that is ready, or else the next that is due, when it is due."""
        ready, scheduled = self._ready, self._scheduled
        while scheduled and (not ready or scheduled[0].when() <= self._now):
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            if not _is_off(timer):
                self._now = max(self._now, timer.when())
                ready.append(timer)
        if not ready:
            raise Stuck("nothing is left to happen" + self._those_who_wait())
        handle = ready.popleft()
        if _is_off(handle):
            return
        self.steps += 1
        if self.steps == self.at:
            self.interrupt()
            if _is_off(handle):
                return
        self._now += STEP
        self.trace.note(self._now, _name(handle._callback))  # type: ignore[attr-defined]
        handle._run()
        if self.steps > self._max_steps or self._now > self._max_time:
            raise Stuck(
                f"not done after {self.steps} steps and {self._now:.3f} s" + self._those_who_wait()
            )

    def _process_events(self, event_list: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        if not self._over:
            super()._asyncgen_finalizer_hook(agen)  # type: ignore[misc]

    def _those_who_wait(self) -> str:
        return "; these wait:\n  " + "\n  ".join(self.waiting())

    def _note_error(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(f"{context['message']}: {error!r}")
        self.note(f"ERROR {self.errors[-1]}")


def _nothing() -> None:
    pass


def _is_off(handle: asyncio.Handle) -> bool:
    """Was it cancelled, or has its process died?"""
    if handle._cancelled:
        return True
    process = handle._context.get(_process)  # type: ignore[attr-defined]
    return process is not None and not process.alive


def _name(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return owner.get_name()
    name = getattr(callback, "__qualname__", None)
    return name if isinstance(name, str) else type(callback).__name__


def _where(task: asyncio.Task[Any]) -> str:
    """Say where a task waits: the innermost coroutine that it is in."""
    inner: Any = task.get_coro()
    while asyncio.iscoroutine(getattr(inner, "cr_await", None)):
        inner = inner.cr_await
    frame = getattr(inner, "cr_frame", None)
    if frame is None:
        return task.get_name()
    return f"{task.get_name()} in {inner.__qualname__}, line {frame.f_lineno}"


def run(loop: SimulatedLoop, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    hooks = sys.get_asyncgen_hooks()
    try:
        return loop.run_until_complete(main)
    finally:
        sys.set_asyncgen_hooks(*hooks)
