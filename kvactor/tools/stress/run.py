"""A run: clients, followers and the nemesis, from the first request to the last."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from kvactor.tools.connections import AsyncConnection
from kvactor.tools.stress.clients import Client, Workload
from kvactor.tools.stress.feed import Reader, complete, follow, record
from kvactor.tools.stress.history import History
from kvactor.tools.stress.nemesis import Nemesis
from kvactor.tools.stress.programs import PROGRAMS
from kvactor.tools.stress.report import progress
from kvactor.tools.stress.servers import Server

#: Seconds between two lines of progress.
PROGRESS = 2.0

#: Seconds that a timer may be early.
EARLY = 0.01

#: How many faults a run of a certain number of operations has, about, and how many operations are
#: between two of them at least, about.
TIMES = 30
APART = 500

P = TypeVar("P", bound=asyncio.Protocol)


class Plan(msgspec.Struct, frozen=True):
    """The parameters of a run. It ends after `operations`, or else after `seconds`.

    `address` is a host and a port; None: a server of its own, in `directory`, with `faults`.
    """

    directory: Path
    address: tuple[str, int] | None
    clients: int
    followers: int
    operations: int | None
    seconds: float | None
    mix: Mapping[str, int]
    seed: int
    keys: int
    hot: bool
    ttl: int
    faults: tuple[str, ...] = ()


class Outcome(msgspec.Struct):
    """Figures of a run beside its history: `seconds` for which the clients worked, and the faults."""

    seconds: float
    retries: int
    kills: int
    mid_write: int
    pauses: int


async def run(plan: Plan, history: History) -> Outcome:
    """Stress a server, and record it in a history.

    Raises `Hangs`, `ServerFailed`, `Behind`, `ValueError` for an invalid response, and `OSError` if
    there is no server at that address.
    """
    async with AsyncExitStack() as stack:
        server = None
        host, port = plan.address or ("127.0.0.1", 0)
        if plan.address is None:
            server = Server(plan.directory, plan.faults)
            stack.callback(server.close)
            await server.start()
            port = server.port

        async def connect(make: Callable[[], P]) -> P:
            return (await asyncio.get_running_loop().create_connection(make, host, port))[1]

        workload = Workload(
            lambda: connect(AsyncConnection),
            history,
            plan.keys,
            plan.hot,
            plan.ttl / 100,
            plan.operations,
            time.monotonic,  # uvloop counts in milliseconds
        )
        try:
            (await workload.connect()).close()
        except OSError as error:
            raise ConnectionError(
                f"cannot connect to http://{host}:{port}: {error.strerror or error}"
            ) from error
        reader = Reader(workload.connect, history.prefix)
        stack.callback(reader.close)
        history.revision = since = await reader.revision()
        history.followers = [[] for _ in range(plan.followers)]
        mix = {PROGRAMS[name]: weight for name, weight in plan.mix.items()}
        clients = [
            Client(number, workload, Random(f"{plan.seed} {number}"), mix)
            for number in range(1, plan.clients + 1)
        ]
        every = plan.operations and max(plan.operations // TIMES, APART)
        nemesis = (
            None if server is None else Nemesis(server, workload, plan.faults, Random(plan.seed), every)
        )
        background: list[Coroutine[Any, Any, None]] = [
            record(Reader(workload.connect, history.prefix), history, since),
            *(follow(connect, history.prefix, events, since) for events in history.followers),
            _show(workload, plan),
        ]
        began = time.monotonic()
        await _all(workload, [client.play() for client in clients], background, nemesis)
        seconds = time.monotonic() - began
        await complete(reader, history)
        if server is None:
            await reader.clear()
        else:
            await server.stop()
        kills, mid_write, pauses = (
            (nemesis.kills, nemesis.mid_write, nemesis.pauses) if nemesis else (0, 0, 0)
        )
        return Outcome(seconds, workload.retries, kills, mid_write, pauses)


async def _all(
    workload: Workload,
    clients: list[Coroutine[Any, Any, None]],
    background: list[Coroutine[Any, Any, None]],
    nemesis: Nemesis | None,
) -> None:
    """Wait for the clients and the nemesis, then end the background. Raises what any of them raises."""
    if nemesis is not None:
        clients = [*clients, nemesis.run()]
    at_work = [asyncio.create_task(one) for one in clients]
    beside = [asyncio.create_task(one) for one in background]
    try:
        left = set(at_work)
        while left:
            ended, _ = await asyncio.wait({*left, *beside}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
            left -= ended
    finally:
        workload.stopped = True
        for task in (*at_work, *beside):
            task.cancel()
        await asyncio.wait({*at_work, *beside})


async def _show(workload: Workload, plan: Plan) -> None:
    """Show progress, and stop the clients when their time is over."""
    began = before = time.monotonic()
    counted = 0
    end = began + plan.seconds if plan.seconds is not None else float("inf")
    while True:
        await asyncio.sleep(min(PROGRESS, end - before))
        now = time.monotonic()
        if now >= end - EARLY:
            workload.stopped = True
            progress("waiting for the last responses ...")
            await asyncio.Event().wait()
        count = len(workload.history.operations)
        progress(
            f"{now - began:6.0f} s  {count:9} operations  {(count - counted) / (now - before):7.0f} a "
            f"second  revision {workload.history.revision}"
        )
        counted, before = count, now
