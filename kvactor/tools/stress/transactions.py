"""Programs with transactions: isolated ones, and the shared one."""

import asyncio
from http import HTTPStatus
from typing import Final

import msgspec

from kvactor.tools.connections import AsyncConnection
from kvactor.tools.http import Closed, Response
from kvactor.tools.stress import encoding
from kvactor.tools.stress.clients import RETRY_DELAY, Client
from kvactor.tools.stress.encoding import SIMPLE, V1, Request, resulting
from kvactor.tools.stress.history import NEVER, Operation, Step

#: How often a transaction that conflicts is tried, and the seconds to wait at first, at most.
TRIES: Final = 8
BACKOFF: Final = 0.002

_CONFLICT: Final = "transaction_conflict"

_MISSING: Final = {"key_not_found", "Key not found"}


class Ended(Exception):
    """A transaction has ended before its commit. The message is the error's code."""


def _alive(response: Response) -> Response:
    """Return a response inside a transaction. Raises `Ended` if it says that this has ended."""
    if response.ok or (response.status == HTTPStatus.NOT_FOUND and response.code in _MISSING):
        return response
    raise Ended(_CONFLICT if response.status == HTTPStatus.CONFLICT else response.code)


# -- isolated transactions --


async def transaction(client: Client) -> None:
    """Read and write in an isolated transaction, perhaps nested; again, if it conflicts."""
    for attempt in range(TRIES):
        one = await _attempt(client)
        if one.error != _CONFLICT:
            return
        client.workload.retries += 1
        await asyncio.sleep(client.random.random() * BACKOFF * 2**attempt)


async def _attempt(client: Client) -> Operation:
    started = client.now()
    one = Operation("transaction", client.number, "fail", started, started, 0.0, steps=[])
    try:
        opened = await client.ask(Request("POST", "/v1/transactions"))
        if opened.ok:
            await _inside(client, one, msgspec.json.decode(opened.body)["id"])
        else:
            one.error = opened.code
    except Ended as error:
        one.error = str(error)
    except Closed:
        one.error = "closed"
    one.took = client.now() - started
    client.workload.note(one)
    return one


async def _inside(client: Client, one: Operation, transaction: str) -> None:
    """Take some steps, and commit or not. What is seen is noted after each step."""
    depth = 1
    for _ in range(client.random.randint(1, 7)):
        what = client.random.choice(["step", "step", "step", "scan", "batch", "begin", "end"])
        if what == "begin" or (what == "end" and depth == 1):
            await _see(client, one, transaction, Step("begin"))
            depth += 1
        elif what == "end":
            await _see(client, one, transaction, Step(client.random.choice(["rollback", "commit"])))
            depth -= 1
        elif what == "batch":
            await _see(client, one, transaction, client.operation(), batch=True)
        elif what == "scan":
            await _see(client, one, transaction, client.scan())
        else:
            await _see(client, one, transaction, client.step())
    for _ in range(depth - 1):
        await _see(client, one, transaction, Step("commit"))
    if client.random.randrange(10):
        await _commit(client, one, transaction)
    else:
        await client.ask(Request("DELETE", f"/v1/transactions/{transaction}"))
        one.error = "dropped"


async def _see(
    client: Client, one: Operation, transaction: str, step: Step, *, batch: bool = False
) -> None:
    """Take a step of an isolated transaction. Raises `Ended` if that has ended."""
    began = client.now()
    if batch:
        response = _alive(await client.ask(encoding.batch([step]), transaction))
        [step] = encoding.batched([step], response)
    elif step.what in V1:
        # A simple route knows no TTL.
        routes = SIMPLE if client.random.randrange(2) and not step.ttl else V1
        how = routes.get(step.what, V1[step.what])
        response = _alive(await client.ask(how.request(step), transaction))
        # Who only writes has read nothing, and is told nothing.
        step = resulting(step, None if step.what == "put" else how.result(response))
    else:
        response = _alive(
            await client.ask(Request("POST", f"/v1/transactions/{transaction}/{step.what}"))
        )
    one.steps.append(msgspec.structs.replace(step, time=response.time))
    one.outcome, one.told, one.revision = "observed", len(one.steps), response.revision
    one.time = response.time
    one.began, one.ended = began, client.now()


async def _commit(client: Client, one: Operation, transaction: str) -> None:
    began, lost, response = client.now(), False, None
    while response is None:
        try:
            response = await client.ask(Request("POST", f"/v1/transactions/{transaction}/commit"))
        except Closed:
            # It may be repeated, and the server remembers, if it is still the same one.
            lost = True
            client.workload.retries += 1
    if response.ok and not lost:
        one.outcome, one.revision, one.began = "ok", response.revision, began
        one.time = response.time
        one.ended = client.now()
    elif response.status != HTTPStatus.CONFLICT and (
        lost or response.status == HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        # A repeated response does not say at which revision it happened, and some say nothing.
        one.outcome, one.began, one.ended, one.time = "info", began, NEVER, 0
    if not response.ok:
        one.error = response.code


# -- the shared transaction --


async def shared(client: Client) -> None:
    """Read and write in the shared transaction, perhaps nested."""
    workload = client.workload
    async with workload.shared:
        connection = await client.connect()
        incarnation = workload.incarnation
        if workload.shared_lost_in == incarnation:
            await asyncio.sleep(RETRY_DELAY)
            return
        try:
            await _speak(client, connection)
        except (Closed, Ended):
            workload.shared_lost_in = incarnation


async def _speak(client: Client, connection: AsyncConnection) -> None:
    """Begin, take some steps, and commit or not: all on one connection, because another one may
    be to another incarnation of the server, where nothing has begun.
    """
    written: list[Step] = []
    levels = ["begin"]
    await _say(client, connection, "begin")
    for _ in range(client.random.randint(2, 7)):
        what = client.random.choice(["step", "step", "step", "begin", "end"])
        if what == "step":
            await _step_in_shared(client, connection, written, client.step())
        elif what == "begin" or len(levels) == 1:
            await _say(client, connection, "begin")
            written.append(Step("begin"))
            levels.append("begin")
        else:
            how = client.random.choice(["rollback", "commit"])
            await _say(client, connection, how)
            written.append(Step(how))
            levels.pop()
    for _ in levels[1:]:
        await _say(client, connection, "commit")
        written.append(Step("commit"))
    if not client.random.randrange(4):
        await _say(client, connection, "rollback")
        return
    async with client.noting("shared", written) as one:
        response = await client.ask_on(connection, Request("POST", "/commit"))
        if response.ok:
            one.outcome, one.revision, one.time = "ok", response.revision, response.time
        else:
            client.not_ok(one, response)
    if one.outcome != "ok":
        raise Ended(one.error)


async def _step_in_shared(
    client: Client, connection: AsyncConnection, written: list[Step], step: Step
) -> None:
    """Take a step. What it reads is true of that revision, and what was written on top."""
    # A simple route knows no TTL.
    step = msgspec.structs.replace(step, ttl=0)
    how, began = SIMPLE[step.what], client.now()
    response = _alive(await client.ask_on(connection, how.request(step)))
    if step.what == "put":
        written.append(step)
        return
    ended = client.now()
    result = resulting(step, how.result(response))
    one = Operation("shared read", client.number, "observed", began, ended, ended - began)
    one.revision, one.steps = response.revision, [*written, result]
    one.time = response.time
    # Of what was written before nothing is told; its steps have no results.
    one.told = len(one.steps)
    client.workload.note(one)
    if step.what == "delete" and result.result:
        written.append(Step("drop", step.key))


async def _say(client: Client, connection: AsyncConnection, what: str) -> None:
    _alive(await client.ask_on(connection, Request("POST", f"/{what}")))
