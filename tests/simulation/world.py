"""The world that a seed makes: a server that lives, dies and lives again on one disk, and clients.

The rule: what a real process would not survive does not survive here either. A crash takes tasks,
timers, connections and memory; the disk and the clients remain.
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, TypeVar
from unittest import mock

from aiohttp import web_response

import kvactor.actor
from kvactor.actor import StoreActor
from kvactor.server import Factory, Server
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from tests.simulation.disk import Disk, DiskProfile
from tests.simulation.loop import Process, SimulatedLoop, run
from tests.simulation.network import Conditions, Network

T = TypeVar("T")

#: When the wall clock begins, in milliseconds since the epoch.
EPOCH = 1_700_000_000_000

#: Seconds that no stop takes, from hearing of it to the end: all clients here read what they are sent,
#: though it may stall, and what they have not sent is not waited for. It is less than aiohttp waits for
#: the rest of a body (10), and than most settings of `shutdown_timeout`.
LONG = 8.0

#: Loggers whose warnings are looked at.
LOGGERS = ("kvactor", "aiohttp", "asyncio")

#: What the server may warn of though nothing is wrong with it.
HARMLESS = ("the shared transaction", "writes are refused (507)")


class SimulatedListener:
    """Accepts what a network connects to a process."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    async def open(self, factory: Factory) -> None:
        self._network.listen(factory, self._process)

    def close(self) -> None:
        self._network.refuse()


class Life:
    """One life of the server, from its start to its end."""

    def __init__(self, world: "World", number: int) -> None:
        self.process = Process(f"server {number}")
        #: its actor, once it accepts connections
        self.actor: StoreActor | None = None
        #: whether it was told to stop
        self.told: asyncio.Future[None] = world.loop.create_future()
        #: its exit status, once it has ended by itself
        self.ended: asyncio.Future[int] = world.loop.create_future()
        self._world = world

    @property
    def up(self) -> bool:
        """Does it accept connections?"""
        return self.process.alive and self.actor is not None and not self.told.done()

    def begin(self) -> None:
        """Start."""
        world = self._world
        world.loop.note(f"{self.process.name} begins")
        context = self.process.context.copy()
        task = world.loop.create_task(self._serve(), name="serve", context=context)
        task.add_done_callback(self._end, context=world.context)

    async def _serve(self) -> int:
        world = self._world
        server = Server(
            Storage(world.disk.journal, world.disk.tree),
            world.settings,
            SimulatedListener(world.network, self.process),
            clock=world.clock,
            new_id=world.new_id,
        )
        server.actor.metrics.clock = world.loop.time
        self.told.add_done_callback(lambda _: server.request_stop())
        await server.start()
        self.actor = server.actor
        await server.wait()
        began = world.loop.time()
        asking = [(end, end.written) for end in world.network.open_ends() if end.asked]
        await server.stop()
        took = world.loop.time() - began
        if took > LONG:
            world.wrong(f"{self.process.name} has taken {took:.1f} s to stop")
        for end, written in asking:
            if end.written == written and (end.first or not end.gone):
                world.unanswered.append(f"{self.process.name} has not answered {end.peer.name}")
        return 1 if server.failed else 0

    def _end(self, task: "asyncio.Task[int]") -> None:
        if task.exception() is not None:
            # It would fail again.
            self._world.restarting = None
            self._world.wrong(f"{self.process.name} cannot run: {task.exception()!r}")
            self.ended.set_result(2)
        else:
            self.ended.set_result(task.result())
        self._die(f"ends with {self.ended.result()}")

    def crash(self) -> None:
        """Die at once."""
        self._die("is killed")
        self._world.disk.crash()

    def _die(self, how: str) -> None:
        if not self.process.alive:
            return  # it was killed in the moment in which it had ended
        self._world.loop.note(f"{self.process.name} {how}")
        self.process.alive = False
        self._world.network.lose(self.process)
        self._world.died(self)

    def stop(self) -> None:
        """Tell it to stop, as a signal does."""
        if not self.told.done():
            self._world.loop.note(f"{self.process.name} is told to stop")
            self.told.set_result(None)


class World:
    """All that there is: use it once, with `run`, and `close` it."""

    def __init__(
        self,
        seed: int,
        settings: Settings | None = None,
        conditions: Conditions | None = None,
        profile: DiskProfile | None = None,
    ) -> None:
        self.seed = seed
        self.settings = settings or Settings()
        self.loop = SimulatedLoop()
        self.network = Network(self.loop, self.random("network"), conditions or Conditions())
        self.disk = Disk(self.loop, self.random("disk"), profile or DiskProfile())
        self.context = self.network.context
        #: milliseconds that the wall clock was set forward
        self.offset = 0
        #: what must not have happened
        self.faults: list[str] = []
        #: whose requests were being handled when a server began to end, and got no answer: because the
        #: handler was cancelled, or not done within `shutdown_timeout`, or because of a fault
        self.unanswered: list[str] = []
        #: every life of the server, the last one being now
        self.lives: list[Life] = []
        #: is a server that has ended started again, and after how many seconds at most?
        self.restarting: float | None = 0.5
        #: is told of each life, by its number
        self.began: Callable[[int], None] = lambda _: None
        self._ids = self.random("ids")
        self._pauses = self.random("pauses")
        self._log = _Log()

    def random(self, name: str) -> Random:
        """Return a source of what the seed decides, of its own for each name."""
        return Random(f"{self.seed} {name}")

    def clock(self) -> int:
        """Return the wall clock's reading, in milliseconds since the epoch."""
        return EPOCH + int(self.loop.time() * 1000) + self.offset

    def new_id(self) -> str:
        """Return an id that no transaction has had."""
        return f"{self._ids.getrandbits(64):016x}"

    def wrong(self, what: str) -> None:
        """Note what must not have happened."""
        self.loop.note(f"WRONG {what}")
        self.faults.append(what)

    # -- the server --

    @property
    def life(self) -> Life:
        """The server's life now, or the last that it had."""
        return self.lives[-1]

    def begin(self) -> None:
        """Start the server."""
        self.lives.append(Life(self, len(self.lives) + 1))
        self.began(len(self.lives))
        self.life.begin()

    def died(self, life: Life) -> None:
        """Start it again after a while, if that is wanted."""
        if self.restarting is not None and life is self.life:
            pause = self._pauses.uniform(0, self.restarting)
            self.loop.call_later(pause, self.begin, context=self.context)

    async def settled(self) -> None:
        """Wait until the server accepts connections, and the disk is idle."""
        while not self.life.up or self.disk.busy:
            await asyncio.sleep(0.01)

    async def stopped(self) -> int:
        """Stop the server for good, and return its exit status."""
        self.restarting = None
        self.life.stop()
        return await self.life.ended

    # -- a run --

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Start the server, and run `main` to its end. Raises what it raises, and `Stuck`."""
        with self._isolated():
            self.begin()
            return run(self.loop, main)

    def close(self) -> None:
        """End all that is left."""
        self.loop.dispose([life.process for life in self.lives])

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Keep real time, the garbage collector and the log out of it."""
        collecting = gc.isenabled()
        gc.disable()
        loggers = [logging.getLogger(name) for name in LOGGERS]
        for logger in loggers:
            logger.addHandler(self._log)
        try:
            with (
                mock.patch.object(web_response, "rfc822_formatted_time", _date),
                mock.patch.object(kvactor.actor, "FOLD_YIELD", 0),
            ):
                yield
        finally:
            for logger in loggers:
                logger.removeHandler(self._log)
            if collecting:
                gc.enable()

    def complaints(self, expected: Callable[[str], bool] = lambda _: False) -> list[str]:
        """Return what went wrong by itself: in the loop, in the log, and what was noted."""
        logged = [one for one in self._log.lines if not expected(one)]
        return [*self.faults, *self.loop.errors, *logged]


class _Log(logging.Handler):
    """Collects warnings, and worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and not record.getMessage().startswith(HARMLESS):
            error = record.exc_info[1] if record.exc_info else None
            cause = f" ({error!r})" if error is not None else ""
            self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}{cause}")


def _date() -> str:
    return "Tue, 14 Nov 2023 22:13:20 GMT"
