"""Short programs, disturbed at every one of their steps in turn: the server's work on the request is
cancelled, the client is gone, the server is killed or told to stop.

Afterwards the server answers others, what was written is there whole or not at all (whole, if it was
acknowledged), and no transaction and no subscriber is left over.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, cast

import msgspec
import pytest

from kvactor.settings import Settings
from kvactor.tools.connections import AsyncConnection, AsyncEventStream
from kvactor.tools.http import Closed, Response
from tests.simulation.faults import working
from tests.simulation.network import QUICK, Conditions
from tests.simulation.world import World
from tests.sizes import size

Values = Mapping[str, str]

#: A server that soon notices who is gone.
SETTINGS: Final = Settings(transaction_idle_timeout=0.5, heartbeat=0.1)

#: Seconds after which it has noticed: a tick, or how long a poll may take, and more.
NOTICED: Final = 2.2


class Talk:
    """A client that says one thing after the other."""

    def __init__(self, world: World, connection: AsyncConnection) -> None:
        self.world = world
        self._connection = connection

    async def say(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request, and return the response. Raises `Closed`."""
        return await self._connection.request(method, target, body, headers or {})

    async def good(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The same, for what has to be done. Raises `Closed` if it was not."""
        response = await self.say(method, target, body, headers)
        if not response.ok:
            # Nothing but a stop may refuse it.
            assert response.code in ("stopping", "The server is shutting down, or not up yet."), (
                response
            )
            raise Closed(response.code)
        return response.body

    def end(self) -> None:
        self._connection.close()


async def connected(world: World) -> Talk:
    """Return a new client of the server, which is up or will be."""
    while True:
        try:
            _, connection = await world.loop.create_connection(AsyncConnection, "127.0.0.1", 5000)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
        else:
            return Talk(world, cast(AsyncConnection, connection))


async def set_a_key(talk: Talk) -> None:
    await talk.good("POST", "/set", b'{"key": "a", "value": "new"}')


async def put_a_key(talk: Talk) -> None:
    await talk.good("PUT", "/v1/kv/a", b"new", {**TEXT, "If-Match": '"1"'})


async def get_a_key(talk: Talk) -> None:
    assert await talk.good("GET", "/get/a") == b'{"key":"a","value":"old"}'


async def get_a_key_on_a_new_connection(talk: Talk) -> None:
    other = await connected(talk.world)
    try:
        await get_a_key(other)
    finally:
        other.end()


async def have_a_body_refused_that_never_comes(talk: Talk) -> None:
    # While the server stops, too: nothing is done for it.
    assert (await talk.say("DELETE", "/nowhere", headers={"Content-Length": "1"})).status == 404
    await get_a_key_on_a_new_connection(talk)


async def delete_a_key(talk: Talk) -> None:
    await talk.good("DELETE", "/v1/kv/a")


async def do_a_batch(talk: Talk) -> None:
    puts = [{"op": "put", "key": key, "value": "new"} for key in "ab"]
    reads = [{"op": "range"}, {"op": "get", "key": "a"}]
    body = msgspec.json.encode({"operations": [*puts, *reads]})
    await talk.good("POST", "/v1/batch", body)


async def commit_an_isolated_transaction(talk: Talk) -> None:
    id_ = msgspec.json.decode(await talk.good("POST", "/v1/transactions"))["id"]
    within = {"Kvactor-Transaction": id_}
    await talk.good("GET", "/get/a", b"", within)
    await talk.good("PUT", "/v1/kv/a", b'"new"', {**within, "Content-Type": "application/json"})
    await talk.good("POST", "/set", b'{"key": "b", "value": "new"}', within)
    await talk.good("POST", f"/v1/transactions/{id_}/commit")


async def commit_the_shared_transaction(talk: Talk) -> None:
    await talk.good("POST", "/begin")
    await talk.good("POST", "/set", b'{"key": "a", "value": "new"}')
    await talk.good("POST", "/begin")
    await talk.good("POST", "/set", b'{"key": "b", "value": "new"}')
    await talk.good("POST", "/commit")
    await talk.good("POST", "/commit")


async def poll_for_changes(talk: Talk) -> None:
    writer = asyncio.create_task(_write_soon(talk.world))
    try:
        page = await talk.good("GET", "/v1/changes?since=1&wait=2")
        # One that is ended by a stop is empty.
        assert len(msgspec.json.decode(page)["revisions"]) <= 1
    finally:
        await writer


async def stream_changes(talk: Talk) -> None:
    writer = asyncio.create_task(_write_soon(talk.world))
    stream = AsyncEventStream("/v1/changes?prefix=other", 1)
    try:
        transport, _ = await talk.world.loop.create_connection(lambda: stream, "127.0.0.1", 5000)
    except ConnectionRefusedError:
        await writer
        raise Closed from None
    # The write may be what is disturbed.
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await stream.receive()
    transport.close()
    await writer


async def _write_soon(world: World) -> None:
    with suppress(Closed):
        other = await connected(world)
        await other.good("PUT", "/v1/kv/other", b"x")
        other.end()


class Program(NamedTuple):
    """What a client does, and what `a` and `b` hold after it. Before it, `a` is old, and `b` is not."""

    does: Callable[[Talk], Awaitable[None]]
    after: Values


TEXT: Final = {"Content-Type": "text/plain", "Idempotency-Key": "1"}

BEFORE: Final[Values] = {"a": "old"}

PROGRAMS: Final = (
    Program(set_a_key, {"a": "new"}),
    Program(put_a_key, {"a": "new"}),
    Program(get_a_key, BEFORE),
    Program(get_a_key_on_a_new_connection, BEFORE),
    Program(have_a_body_refused_that_never_comes, BEFORE),
    Program(delete_a_key, {}),
    Program(do_a_batch, {"a": "new", "b": "new"}),
    Program(commit_an_isolated_transaction, {"a": "new", "b": "new"}),
    Program(commit_the_shared_transaction, {"a": "new", "b": "new"}),
    Program(poll_for_changes, BEFORE),
    Program(stream_changes, BEFORE),
)


def cancel_the_handler(world: World) -> None:
    if tasks := working(world):
        tasks[-1].cancel()


def cancel_the_connection_task(world: World) -> None:
    if tasks := working(world):
        tasks[0].cancel()


def break_the_connection(world: World) -> None:
    for end in world.network.open_ends():
        end.peer.abort()
        end.reset()


def leave(world: World) -> None:
    for end in world.network.open_ends():
        end.peer.close()


def kill(world: World) -> None:
    world.life.crash()


def stop(world: World) -> None:
    world.life.stop()


Disturbance = Callable[[World], None]

AT_EVERY_STEP: Final = (cancel_the_handler, break_the_connection, stop)
DISTURBANCES: Final = (*AT_EVERY_STEP, cancel_the_connection_task, leave, kill)

#: Seconds that a piece takes, on average.
DELAYS: Final = (QUICK, 0.001)


class Run:
    """A program in a world of its own, disturbed before its step number `step` (0: not at all)."""

    def __init__(self, program: Program, delay: float, disturb: Disturbance, step: int) -> None:
        # So that bodies and answers come in pieces, and are waited for.
        self.world = World(0, SETTINGS, conditions=Conditions(delay=delay, split=0.5))
        self.steps = 0
        self._program = program
        self._disturb = disturb
        self._step = step
        self._acknowledged = False

    def go(self) -> None:
        """Do it, and check what is there then."""
        try:
            assert self.world.run(self._main()) == 0
            assert self.world.complaints() == []
            assert self.world.unanswered == []
        finally:
            self.world.close()

    async def _main(self) -> int:
        world = self.world
        first = await connected(world)
        await first.good("POST", "/set", b'{"key": "a", "value": "old"}')
        first.end()
        talk = await connected(world)
        before = world.loop.steps
        if self._step:
            world.loop.interrupt = lambda: self._disturb(world)
            world.loop.at = before + self._step
        with suppress(Closed):
            await self._program.does(talk)
            self._acknowledged = True
        self.steps = world.loop.steps - before
        talk.end()
        while world.network.open_ends() or working(world):
            await asyncio.sleep(0.01)
        await world.settled()
        await self._check(await connected(world))
        return await world.stopped()

    async def _check(self, talk: Talk) -> None:
        while (await talk.say("POST", "/rollback")).ok:
            pass
        items = msgspec.json.decode(await talk.good("GET", "/v1/kv?end=c"))["items"]
        found = {item["key"]: item["value"] for item in items}
        program = self._program
        assert found == program.after or (found == BEFORE and not self._acknowledged), found
        status = msgspec.json.decode(await talk.good("GET", "/v1/status"))
        assert status["transactions"]["open"] <= 1
        await asyncio.sleep(NOTICED)
        status = msgspec.json.decode(await talk.good("GET", "/v1/status"))
        assert status["transactions"] == {"open": 0, "shared": {"depth": 0, "age": 0.0}}
        assert status["mailbox"] == {"waiting": 0, "held": 0}
        assert self.world.life.actor is not None
        assert self.world.life.actor.metrics.subscribers() == 0
        await talk.good("PUT", "/v1/kv/other", b"y")
        assert await talk.good("GET", "/v1/kv/other") == b"y"
        talk.end()


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.does.__name__)
def test_a_disturbance_at_any_step_leaves_all_or_nothing_and_a_server_that_works(
    program: Program, delay: float, disturb: Disturbance
) -> None:
    undisturbed = Run(program, delay, disturb, 0)
    undisturbed.go()
    assert undisturbed.steps
    for step in range(1, undisturbed.steps + 1, 1 if disturb in AT_EVERY_STEP else size("stride")):
        try:
            Run(program, delay, disturb, step).go()
        except BaseException as error:
            error.add_note(f"{disturb.__name__} before step {step} of {program.does.__name__}")
            raise
