"""Programs of a request or two, and the mix of all programs.

The rule: a lost response ends a program, and its client begins another.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from kvactor.tools.http import Closed
from kvactor.tools.stress import encoding
from kvactor.tools.stress.clients import RETRY_DELAY, Client, Program
from kvactor.tools.stress.encoding import V1, Request, resulting
from kvactor.tools.stress.history import Operation, Step
from kvactor.tools.stress.transactions import shared, transaction


async def _one(client: Client, step: Step) -> Operation:
    how = V1[step.what]
    async with client.noting(step.what, [step]) as one:
        response = await client.ask(how.request(step))
        if response.status in how.statuses:
            client.ok(one, response, [resulting(step, how.result(response))])
        else:
            client.not_ok(one, response)
    return one


async def get(client: Client) -> None:
    """Read a key."""
    await _one(client, Step("get", client.key()))


async def put(client: Client) -> None:
    """Write a key."""
    await _one(client, client.put())


async def cas(client: Client) -> None:
    """Read a key, and write it if it is still the same."""
    one = await _one(client, Step("get", client.key()))
    if one.outcome == "ok":
        [read] = one.steps
        expected = read.result[1] if read.result else 0
        await _one(client, Step("cas", read.key, [expected, client.value()]))


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
        response = await client.ask(encoding.batch(steps))
        if response.ok:
            client.ok(one, response, encoding.batched(steps, response))
        else:
            client.not_ok(one, response)


async def idempotent_put(client: Client) -> None:
    """Write a key with an idempotency key, as often as it takes to get an response."""
    step = client.put()
    method, target, body, headers = V1["put"].request(step)
    again = {**headers, "Idempotency-Key": f"{client.workload.history.prefix}{step.argument}"}
    lost = False
    async with client.noting("idempotent_put", [step]) as one:
        while one.outcome == "info":
            try:
                response = await client.ask(Request(method, target, body, again))
            except Closed:
                lost = True
                client.workload.retries += 1
                continue
            if response.ok:
                client.ok(one, response, [resulting(step, V1["put"].result(response))])
                # Told again later, it is still of the revision that it was.
                one.revision = response.json()["revision"]
                if lost:
                    # The response may be a repetition, and the time is not that of the write.
                    one.time = 0
            elif response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                if lost:
                    # A refusal says nothing of the tries before it.
                    one.error = response.code
                    break
                client.not_ok(one, response)
            else:
                lost = lost or response.status == HTTPStatus.INTERNAL_SERVER_ERROR
                client.workload.retries += 1
                await asyncio.sleep(RETRY_DELAY)


#: Every program that there is, by its name in a mix.
PROGRAMS: Final[Mapping[str, Program]] = {
    program.__name__: program
    for program in (get, put, cas, delete, scan, idempotent_put, batch, transaction, shared)
}

#: How often each is done, of 100 times.
MIX: Final[Mapping[str, int]] = {
    **dict.fromkeys(["get", "put"], 22),
    **dict.fromkeys(["batch", "transaction"], 13),
    **dict.fromkeys(["cas", "delete"], 8),
    **dict.fromkeys(["scan", "idempotent_put"], 5),
    "shared": 4,
}
