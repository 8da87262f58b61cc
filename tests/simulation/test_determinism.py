"""Nothing but the seed decides: not the addresses of objects, not the hashes of strings, not what ran
before.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

import pytest

from kvactor.settings import Settings
from kvactor.tools.connections import AsyncEventStream
from kvactor.tools.http import Closed
from tests.simulation.network import Conditions
from tests.simulation.schedules import simulate
from tests.simulation.test_cancelling import connected
from tests.simulation.world import World

#: Seeds that are run again, here and elsewhere.
AGAIN: Final = range(6)

#: How many connections wait for the same thing, and how often the same is done.
MANY: Final = 12
TIMES: Final = 4


def test_a_seed_gives_the_same_steps_in_another_process_with_other_hashes() -> None:
    here = [simulate(seed).trace.digest() for seed in AGAIN]
    assert [simulate(seed).trace.digest() for seed in AGAIN] == here
    assert len(set(here)) == len(AGAIN)
    code = (
        "from tests.simulation.schedules import simulate\n"
        f"for seed in {AGAIN!r}: print(simulate(seed).trace.digest())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert elsewhere.stdout.split() == here


async def stop_while_many_poll(world: World) -> None:
    async def poll(number: int) -> None:
        talk = await connected(world)
        with suppress(Closed):
            await talk.say("GET", f"/v1/changes?since=0&wait={20 + number}")
        talk.end()

    polls = [asyncio.create_task(poll(number)) for number in range(MANY)]
    await asyncio.sleep(1)
    assert await world.stopped() == 0
    await asyncio.gather(*polls)


async def cut_off_many_who_do_not_read(world: World) -> None:
    await (await connected(world)).good("PUT", "/v1/kv/large", bytes(2000))
    stream = partial(AsyncEventStream, "/v1/changes", 0)
    for _ in range(MANY):
        transport, _ = await world.loop.create_connection(stream, "127.0.0.1", 5000)
        transport.pause_reading()
    await asyncio.sleep(4)
    assert world.life.actor is not None
    assert world.life.actor.metrics.slow_clients_disconnected == MANY
    assert await world.stopped() == 0


@pytest.mark.parametrize("scene", [stop_while_many_poll, cut_off_many_who_do_not_read])
def test_connections_and_waits_that_end_together_end_in_the_same_order_each_time(
    scene: Callable[[World], Coroutine[Any, Any, None]],
) -> None:
    digests = set()
    kept = []
    for time in range(TIMES):
        # So that the next objects lie elsewhere.
        kept.append([bytearray(50 + time) for _ in range(100 * time)])
        world = World(0, Settings(write_timeout=0.5), Conditions(wire=100))
        try:
            world.run(scene(world))
            assert world.complaints() == []
        finally:
            world.close()
        digests.add(world.loop.trace.digest())
    assert len(digests) == 1
