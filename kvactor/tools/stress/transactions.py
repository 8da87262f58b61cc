"""What clients do in transactions: isolated ones, and the shared one."""

import asyncio
from http import HTTPStatus
from typing import Final

import msgspec

from kvactor.tools.stress import wire
from kvactor.tools.stress.client import Answer, Closed, Connection
from kvactor.tools.stress.clients import KNOCK, Client
from kvactor.tools.stress.history import NEVER, Operation, Step
from kvactor.tools.stress.wire import SEED, WIRE, Request, resulting

#: How often a transaction that conflicts is tried, and the seconds to wait at first, at most.
TRIES: Final = 8
BACKOFF: Final = 0.002

_CONFLICT: Final = "transaction_conflict"

_MISSING: Final = {"key_not_found", "Key not found"}


class Ended(Exception):
    """A transaction has ended before its commit. The message is the error's code."""


def _alive(answer: Answer) -> Answer:
    """Return an answer from within a transaction. Raises `Ended` if it says that there is none."""
    if answer.ok or (answer.status == HTTPStatus.NOT_FOUND and answer.code in _MISSING):
        return answer
    raise Ended(_CONFLICT if answer.status == HTTPStatus.CONFLICT else answer.code)


# -- isolated transactions --


async def transaction(client: Client) -> None:
    """Read and write in an isolated transaction, perhaps nested; again, if it conflicts."""
    for attempt in range(TRIES):
        one = await _attempt(client)
        if one.error != _CONFLICT:
            return
        client.stage.retries += 1
        await asyncio.sleep(client.random.random() * BACKOFF * 2**attempt)


async def _attempt(client: Client) -> Operation:
    started = client.now()
    one = Operation("transaction", client.number, "refused", started, started, 0.0, steps=[])
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
    client.stage.note(one)
    return one


async def _inside(client: Client, one: Operation, within: str) -> None:
    """Take some steps, and commit or not. What is seen is noted after each step."""
    depth = 1
    for _ in range(client.random.randint(1, 7)):
        what = client.random.choice(["step", "step", "step", "scan", "batch", "begin", "end"])
        if what == "begin" or (what == "end" and depth == 1):
            await _see(client, one, within, Step("begin"))
            depth += 1
        elif what == "end":
            await _see(client, one, within, Step(client.random.choice(["rollback", "commit"])))
            depth -= 1
        elif what == "batch":
            await _see(client, one, within, client.operation(), batch=True)
        elif what == "scan":
            await _see(client, one, within, client.scan())
        else:
            await _see(client, one, within, client.step())
    for _ in range(depth - 1):
        await _see(client, one, within, Step("commit"))
    if client.random.randrange(10):
        await _commit(client, one, within)
    else:
        await client.ask(Request("DELETE", f"/v1/transactions/{within}"))
        one.error = "dropped"


async def _see(client: Client, one: Operation, within: str, step: Step, *, batch: bool = False) -> None:
    """Take a step of an isolated transaction. Raises `Ended` if that has ended."""
    began = client.now()
    if batch:
        answer = _alive(await client.ask(wire.batch([step]), within))
        [step] = wire.batched([step], answer)
    elif step.what in WIRE:
        routes = SEED if client.random.randrange(2) else WIRE
        how = routes.get(step.what, WIRE[step.what])
        answer = _alive(await client.ask(how.request(step), within))
        # Who only writes has read nothing, and is told nothing.
        step = resulting(step, None if step.what == "put" else how.result(answer))
    else:
        answer = _alive(await client.ask(Request("POST", f"/v1/transactions/{within}/{step.what}")))
    one.steps.append(step)
    one.outcome, one.told, one.revision = "seen", len(one.steps), answer.revision
    one.began, one.ended = began, client.now()


async def _commit(client: Client, one: Operation, within: str) -> None:
    began, lost, answer = client.now(), False, None
    while answer is None:
        try:
            answer = await client.ask(Request("POST", f"/v1/transactions/{within}/commit"))
        except Closed:
            # It may be repeated, and the server remembers, if it is still the same one.
            lost = True
            client.stage.retries += 1
    if answer.ok and not lost:
        one.outcome, one.revision, one.began = "done", answer.revision, began
        one.ended = client.now()
    elif answer.status != HTTPStatus.CONFLICT and (
        lost or answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        # A repeated answer does not say at which revision it happened, and some say nothing.
        one.outcome, one.began, one.ended = "unknown", began, NEVER
    if not answer.ok:
        one.error = answer.code


# -- the shared transaction --


async def shared(client: Client) -> None:
    """Read and write in the shared transaction, perhaps nested."""
    stage = client.stage
    async with stage.shared:
        connection = await client.connect()
        life = stage.life
        if stage.shared_lost == life:
            await asyncio.sleep(KNOCK)
            return
        try:
            await _speak(client, connection)
        except (Closed, Ended):
            stage.shared_lost = life


async def _speak(client: Client, connection: Connection) -> None:
    """Begin, take some steps, and commit or not: all on one connection, because another one may
    be to another life of the server, where nothing has begun.
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
        answer = await client.ask_on(connection, Request("POST", "/commit"))
        if answer.ok:
            one.outcome, one.revision = "done", answer.revision
        else:
            client.not_done(one, answer)
    if one.outcome != "done":
        raise Ended(one.error)


async def _step_in_shared(
    client: Client, connection: Connection, written: list[Step], step: Step
) -> None:
    """Take a step. What it reads is true of that revision, and what was written on top."""
    how, began = SEED[step.what], client.now()
    answer = _alive(await client.ask_on(connection, how.request(step)))
    if step.what == "put":
        written.append(step)
        return
    ended = client.now()
    result = resulting(step, how.result(answer))
    one = Operation("shared read", client.number, "seen", began, ended, ended - began)
    one.revision, one.steps = answer.revision, [*written, result]
    # Of what was written before nothing is told; its steps have no results.
    one.told = len(one.steps)
    client.stage.note(one)
    if step.what == "delete" and result.result:
        written.append(Step("drop", step.key))


async def _say(client: Client, connection: Connection, what: str) -> None:
    _alive(await client.ask_on(connection, Request("POST", f"/{what}")))
