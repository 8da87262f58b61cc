"""What one seed does: a world with settings, a network and a disk of its own, some clients, some
faults, and the verdict on all that they were told.
"""

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final, TypeVar, cast

import msgspec

from kvactor.core import records
from kvactor.core.records import HIDDEN, NEVER, Record
from kvactor.core.transaction import LEVEL_OVERHEAD, TRANSACTION_OVERHEAD
from kvactor.core.work import UNCHARGED
from kvactor.settings import Settings
from kvactor.tools.connections import AsyncConnection, AsyncEventStream
from kvactor.tools.stress.checker import check
from kvactor.tools.stress.clients import Client, Hangs, Workload
from kvactor.tools.stress.feed import follow
from kvactor.tools.stress.history import FeedEvent, History, Item, lines
from kvactor.tools.stress.programs import MIX, PROGRAMS, scan
from tests.simulation.disk import DiskProfile
from tests.simulation.faults import Faults
from tests.simulation.loop import Stuck, Trace
from tests.simulation.network import QUICK, Conditions
from tests.simulation.world import World

P = TypeVar("P", bound=asyncio.Protocol)

CLIENTS: Final = 3
#: Operations that the clients do, all together.
OPERATIONS: Final = 15
#: Steps within which faults begin: about as many as an undisturbed run has.
HORIZON: Final = 600

#: Lines of the trace in a report.
LAST: Final = 30

_MIX: Final = {PROGRAMS[name]: weight for name, weight in MIX.items()}

#: Settings that make a server feel its bounds, and how often each of them is chosen.
TIGHTNESS: Final = 0.15
TIGHT: Final[dict[str, int | float]] = {
    "mailbox_size": 1,
    "memtable_size": 300,
    "history": 3,
    "transaction_idle_timeout": 0.05,
    "max_transactions": 2,
    "max_transaction_depth": 2,
    "max_transaction_size": TRANSACTION_OVERHEAD + 3 * LEVEL_OVERHEAD + 400,
    "remembered_transactions": 1,
    "max_batch_size": 3,
    "max_scan_limit": 5,
    "max_subscribers": 1,
    "write_timeout": 0.05,
    "max_connections": 2,
    "heartbeat": 0.05,
    "body_timeout": 0.02,
    "keepalive_timeout": 0.05,
    "shutdown_timeout": 0.05,
}


class Report(msgspec.Struct):
    """How a seed went. `violation` is empty if all was well."""

    seed: int
    violation: str
    faults: list[str]
    trace: Trace
    history: History

    def __str__(self) -> str:
        faults = "".join(f"\n  {one}" for one in self.faults) or " none"
        steps = "\n  ".join(self.trace.lines(LAST))
        return (
            f"seed {self.seed}: {self.violation or 'all was well'}\nfaults:{faults}\n"
            f"the last steps:\n  {steps}\n"
            f"again: python -m tests.simulation {self.seed}"
        )


def simulate(seed: int) -> Report:
    """Run a seed."""
    random = Random(f"{seed} schedule")
    world = World(
        seed,
        msgspec.structs.replace(
            Settings(), **{name: value for name, value in TIGHT.items() if random.random() < TIGHTNESS}
        ),
        Conditions(
            delay=random.choice((QUICK, 0.0002, 0.001, 0.01)),
            split=random.choice((0.0, 0.1, 0.5)),
            stalls=random.choice((0.0, 0.0, 0.02)),
            wire=random.choice((65536, 100)),
            high=random.choice((65536, 200)),
        ),
        DiskProfile(delay=random.choice((0.0001, 0.001, 0.02))),
    )
    # A server that is started with a clock set back finds alive again what had expired (README).
    ttl = random.choice((0.0, 0.5))
    faults = Faults(world, random, random.choice((0, 1, 1, 2, 3, 5)), HORIZON, backwards=not ttl)
    run = _Run(world, faults, random, ttl)
    try:
        violation = run.violation()
    finally:
        world.close()
    return Report(seed, violation, faults.done, world.loop.trace, run.history)


class _Run:
    def __init__(self, world: World, faults: Faults, random: Random, ttl: float) -> None:
        self.history = History("s")
        self._ttl = ttl
        self._world = world
        self._faults = faults
        self._random = random

    def violation(self) -> str:
        """Run, and say what was wrong, if anything was."""
        world = self._world
        try:
            status = world.run(self._main())
        except (Stuck, Hangs, ValueError) as error:
            return "; ".join([*world.faults, f"{type(error).__name__}: {error}"])
        if status:
            return f"the server ended with {status} when it was told to stop"
        complaints = world.complaints(self._excused)
        if complaints:
            return "; ".join(complaints)
        self.history.feed = list(self._feed())
        self.history.final = list(self._stored())
        self.history.revision = world.disk.journal.head()
        verdict = check(self.history)
        if verdict.violation:
            return "\n  ".join([verdict.violation, *lines(verdict.stretch)])
        return ""

    async def _main(self) -> int:
        world, random = self._world, self._random
        workload = Workload(
            self._connect,
            self.history,
            random.choice((3, 10, 30)),
            random.random() < 0.5,
            self._ttl,
            OPERATIONS,
        )
        world.began = lambda number: setattr(workload, "incarnation", number)
        clients = [
            Client(number, workload, world.random(f"client {number}"), _MIX)
            for number in range(CLIENTS)
        ]
        self.history.followers = [[] for _ in range(random.choice((0, 1)))]
        followers = [
            world.loop.create_task(follow(self._stream, self.history.prefix, events, 0))
            for events in self.history.followers
        ]
        await asyncio.gather(*(client.play() for client in clients))
        self._faults.end()
        await world.settled()
        workload.left = 1
        await Client(CLIENTS, workload, random, {scan: 1}).play()
        status = await world.stopped()
        for follower in followers:
            follower.cancel()
        return status

    async def _connect(self) -> AsyncConnection:
        return await self._connected(lambda: Watched(self._world))

    async def _stream(self, make: Callable[[], AsyncEventStream]) -> AsyncEventStream:
        return await self._connected(make)

    async def _connected(self, make: Callable[[], P]) -> P:
        return cast(P, (await self._world.loop.create_connection(make, "127.0.0.1", 5000))[1])

    def _excused(self, logged: str) -> bool:
        return self._faults.excuse and logged.startswith("CRITICAL kvactor.actor: the owner has failed")

    # -- what is there in the end --

    def _feed(self) -> Iterator[FeedEvent]:
        for revision in self._world.disk.journal.all:
            changes = dict(_changes(revision.changes))
            yield FeedEvent(
                revision.number,
                {key: taken and msgspec.json.decode(taken.value) for key, taken in changes.items()},
                {
                    key: taken.expires_at
                    for key, taken in changes.items()
                    if taken is not None and taken.expires_at != NEVER
                },
                revision.time,
            )

    def _stored(self) -> Iterator[Item]:
        for key, record in self._world.disk.tree.range(
            self.history.prefix.encode(), None, False, True, UNCHARGED
        ):
            if not key.startswith(HIDDEN):
                taken = records.decode(record)
                yield Item(key.decode(), msgspec.json.decode(taken.value), taken.revision)


def _changes(changes: Any) -> Iterator[tuple[str, Record | None]]:
    for key, record in changes:
        if not key.startswith(HIDDEN):
            yield key.decode(), None if record is None else records.decode(record)


class Watched(AsyncConnection):
    """Insists that whatever comes was asked for."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def data_received(self, data: bytes) -> None:
        if not self._protocol.waiting:
            self._world.wrong(f"nobody has asked for {data!r}")
        super().data_received(data)
