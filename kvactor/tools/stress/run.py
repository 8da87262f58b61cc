"""A run: clients, followers, and what befalls the server, from the first request to the last."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec

from kvactor.tools.stress.client import Connection
from kvactor.tools.stress.clients import Client, Stage
from kvactor.tools.stress.feed import Reader, complete, follow, record
from kvactor.tools.stress.history import History
from kvactor.tools.stress.programs import PROGRAMS
from kvactor.tools.stress.report import progress
from kvactor.tools.stress.servers import Server, Trouble

#: Seconds between two lines of progress.
PROGRESS = 2.0

#: How many faults a run of a certain number of operations has, about, and how many operations are
#: between two of them at least, about.
TIMES = 30
APART = 500

P = TypeVar("P", bound=asyncio.Protocol)


class Plan(msgspec.Struct, frozen=True):
    """What a run is to do. It is over after `operations`, or else after `seconds`.

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
    faults: tuple[str, ...] = ()


class Outcome(msgspec.Struct):
    """How it went, beside the history: seconds that the clients were at work, and what befell."""

    seconds: float
    retries: int
    kills: int
    within: int
    pauses: int


async def run(plan: Plan, history: History) -> Outcome:
    """Stress a server, and take it down into a history.

    Raises `Hangs`, `Failed`, `Behind`, `ValueError` for an answer that is none, and `OSError` if there
    is no server at that address.
    """
    async with AsyncExitStack() as stack:
        server = None
        host, port = plan.address or ("127.0.0.1", 0)
        if plan.address is None:
            server = Server(plan.directory, plan.faults)
            stack.push_async_callback(server.kill)
            await server.start()
            port = server.port

        async def connect(make: Callable[[], P]) -> P:
            return (await asyncio.get_running_loop().create_connection(make, host, port))[1]

        stage = Stage(
            lambda: connect(Connection),
            history,
            plan.keys,
            plan.hot,
            plan.operations,
            time.monotonic,  # uvloop counts in milliseconds
        )
        (await stage.connect()).close()
        reader = Reader(stage.connect, history.prefix)
        stack.callback(reader.close)
        history.revision = since = await reader.revision()
        history.followers = [[] for _ in range(plan.followers)]
        mix = {PROGRAMS[name]: weight for name, weight in plan.mix.items()}
        clients = [
            Client(number, stage, Random(f"{plan.seed} {number}"), mix)
            for number in range(1, plan.clients + 1)
        ]
        every = plan.operations and max(plan.operations // TIMES, APART)
        trouble = (
            None if server is None else Trouble(server, stage, plan.faults, Random(plan.seed), every)
        )
        background: list[Coroutine[Any, Any, None]] = [
            record(Reader(stage.connect, history.prefix), history, since),
            *(follow(connect, history.prefix, sightings, since) for sightings in history.followers),
            _show(stage, plan),
        ]
        began = time.monotonic()
        await _all(stage, [client.play() for client in clients], background, trouble)
        seconds = time.monotonic() - began
        await complete(reader, history)
        if server is None:
            await reader.clear()
        else:
            await server.end()
        kills, within, pauses = (
            (trouble.kills, trouble.within, trouble.pauses) if trouble else (0, 0, 0)
        )
        return Outcome(seconds, stage.retries, kills, within, pauses)


async def _all(
    stage: Stage,
    clients: list[Coroutine[Any, Any, None]],
    background: list[Coroutine[Any, Any, None]],
    trouble: Trouble | None,
) -> None:
    """Wait for the clients and for the trouble; what else goes on ends then. Raises what any raises."""
    if trouble is not None:
        clients = [*clients, trouble.make()]
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
        stage.over = True
        for task in (*at_work, *beside):
            task.cancel()
        await asyncio.wait({*at_work, *beside})


async def _show(stage: Stage, plan: Plan) -> None:
    """Show how far it is, and end it when its time is over."""
    began = before = time.monotonic()
    counted = 0
    end = began + plan.seconds if plan.seconds is not None else float("inf")
    while True:
        await asyncio.sleep(min(PROGRESS, max(0.0, end - before)))
        now = time.monotonic()
        count = len(stage.history.operations)
        progress(
            f"{now - began:6.0f} s  {count:9} operations  {(count - counted) / (now - before):7.0f} a "
            f"second  revision {stage.history.revision}"
        )
        counted, before = count, now
        if now >= end:
            stage.over = True
            end = float("inf")
