"""What clients do in a request or two, and the mix of all that they do.

The rule: a lost answer ends a program, and its client begins another.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from kvactor.tools.stress import wire
from kvactor.tools.stress.client import Closed
from kvactor.tools.stress.clients import KNOCK, Client, Program
from kvactor.tools.stress.history import Operation, Step
from kvactor.tools.stress.transactions import shared, transaction
from kvactor.tools.stress.wire import WIRE, Request, resulting


async def _one(client: Client, step: Step) -> Operation:
    how = WIRE[step.what]
    async with client.noting(step.what, [step]) as one:
        answer = await client.ask(how.request(step))
        if answer.status in how.statuses:
            client.done(one, answer, [resulting(step, how.result(answer))])
        else:
            client.not_done(one, answer)
    return one


async def get(client: Client) -> None:
    """Read a key."""
    await _one(client, Step("get", client.key()))


async def put(client: Client) -> None:
    """Write a key."""
    await _one(client, Step("put", client.key(), client.value()))


async def swap(client: Client) -> None:
    """Read a key, and write it if it is still the same."""
    one = await _one(client, Step("get", client.key()))
    if one.outcome == "done":
        [read] = one.steps
        expected = read.result[1] if read.result else 0
        await _one(client, Step("swap", read.key, [expected, client.value()]))


async def delete(client: Client) -> None:
    """Remove a key."""
    await _one(client, Step("delete", client.key()))


async def scan(client: Client) -> None:
    """Read some keys in a row, all of one moment."""
    await _one(client, client.scan())


async def batch(client: Client) -> None:
    """Do several things as one."""
    steps = [client.operation() for _ in range(client.random.randint(1, 5))]
    async with client.noting("batch", steps) as one:
        answer = await client.ask(wire.batch(steps))
        if answer.ok:
            client.done(one, answer, wire.batched(steps, answer))
        else:
            client.not_done(one, answer)


async def once(client: Client) -> None:
    """Write a key with an idempotency key, as often as it takes to get an answer."""
    step = Step("put", client.key(), client.value())
    method, target, body, headers = WIRE["put"].request(step)
    again = {**headers, "Idempotency-Key": f"{client.stage.history.prefix}{step.argument}"}
    lost = False
    async with client.noting("once", [step]) as one:
        while one.outcome == "unknown":
            try:
                answer = await client.ask(Request(method, target, body, again))
            except Closed:
                lost = True
                client.stage.retries += 1
                continue
            if answer.ok:
                client.done(one, answer, [resulting(step, WIRE["put"].result(answer))])
                # Told again later, it is still of the revision that it was.
                one.revision = msgspec.json.decode(answer.body)["revision"]
            elif answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                if lost:
                    # A refusal says nothing of the tries before it.
                    one.error = answer.code
                    break
                client.not_done(one, answer)
            else:
                lost = lost or answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
                client.stage.retries += 1
                await asyncio.sleep(KNOCK)


#: Every program that there is, by its name in a mix.
PROGRAMS: Final[Mapping[str, Program]] = {
    program.__name__: program
    for program in (get, put, swap, delete, scan, once, batch, transaction, shared)
}

#: How often each is done, of 100 times.
MIX: Final[Mapping[str, int]] = {
    **dict.fromkeys(["get", "put"], 22),
    **dict.fromkeys(["batch", "transaction"], 13),
    **dict.fromkeys(["swap", "delete"], 8),
    **dict.fromkeys(["scan", "once"], 5),
    "shared": 4,
}
