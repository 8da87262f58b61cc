"""What clients do: each program is one thing that a user of the server might do, from its first request
to its end, noted in the history.

The rule: what is noted is what was sent and told, and nothing is concluded from it here. A lost
answer ends a program, and its client begins another.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from random import Random
from typing import Final

import msgspec

from stress.client import Answer, Closed, Connection
from stress.history import History, Operation, Step
from stress.wire import SEED, WIRE, Request, Wire, batch, batched, resulting

#: Seconds after which a server that does not answer hangs, or one that is down does not come back.
PATIENCE: Final = 60.0

#: Seconds between two tries to connect, or to get in.
KNOCK: Final = 0.02

#: How often a transaction that conflicts is tried, and the seconds to wait at first, at most.
TRIES: Final = 8
BACKOFF: Final = 0.002

_CONFLICT: Final = "transaction_conflict"


class Hangs(Exception):
    """The server has not answered, or not come back, for `PATIENCE` seconds."""


class Ended(Exception):
    """A transaction has ended before its commit. The message is the error's code."""


class Stage:
    """What all clients of a run have in common: the server, the keys, the history, and the shared
    transaction: there is one for all, so one client at a time speaks in it.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        history: History,
        keys: int = 200,
        hot: bool = False,
        operations: int | None = None,
    ) -> None:
        self.connect = connect
        self.history = history
        #: how many operations are left; None: until it is `over`
        self.left = operations
        self.over = False
        self.retries = 0
        #: how often the server was started
        self.life = 1
        self.shared = asyncio.Lock()
        #: in which life a request in the shared transaction was lost: it may still come through then,
        #: and meet the next transaction
        self.shared_lost = 0
        self._keys = keys
        self._power = 4 if hot else 1

    def key(self, random: Random) -> str:
        """Choose one of the keys; if some are hot, those most of the time."""
        return f"{self.history.prefix}{int(random.random() ** self._power * self._keys):05}"

    def counter(self, random: Random) -> str:
        """Choose one of the keys that hold numbers."""
        return f"{self.history.prefix}n{random.randrange(5)}"

    def note(self, one: Operation) -> None:
        """Take an operation into the history."""
        self.history.operations.append(one)
        if self.left is not None:
            self.left -= 1

    @property
    def done(self) -> bool:
        """Is it over?"""
        return self.over or (self.left is not None and self.left <= 0)


class Client:
    """One client: a connection at a time, programs one after the other."""

    def __init__(self, number: int, stage: Stage, random: Random, mix: Mapping[str, int]) -> None:
        self.number = number
        self._stage = stage
        self._random = random
        self._names, self._weights = list(mix), list(mix.values())
        self._connection: Connection | None = None
        self._made = 0
        self._now = asyncio.get_running_loop().time

    async def play(self) -> None:
        """Do one thing after the other until all is done.

        Raises `Hangs`, and `ValueError` for an answer that is none.
        """
        while not self._stage.done:
            [name] = self._random.choices(self._names, self._weights)
            await PROGRAMS[name](self)
        if self._connection is not None:
            self._connection.close()

    # -- requests --

    async def _connect(self) -> Connection:
        if self._connection is None or not self._connection.open:
            deadline = self._now() + PATIENCE
            while True:
                try:
                    self._connection = await self._stage.connect()
                    break
                except ConnectionError as error:
                    if self._now() > deadline:
                        raise Hangs(f"the server cannot be reached: {error}") from error
                    await asyncio.sleep(KNOCK)
        return self._connection

    async def _ask(self, request: Request, within: str | None = None) -> Answer:
        """Return an answer. Raises `Closed` if nobody knows what happened, and `Hangs`."""
        return await self._ask_on(await self._connect(), request, within)

    @staticmethod
    async def _ask_on(connection: Connection, request: Request, within: str | None = None) -> Answer:
        method, target, body, headers = request
        if within is not None:
            headers = {**headers, "Kvactor-Transaction": within}
        content = b"" if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(PATIENCE):
                return await connection.ask(method, target, content, headers)
        except TimeoutError:
            raise Hangs(f"no answer to {method} {target} for {PATIENCE:g} s") from None

    # -- notes --

    @asynccontextmanager
    async def _noting(self, kind: str, steps: list[Step]) -> AsyncIterator[Operation]:
        """Note an operation when it has ended. Its outcome is unknown if its answer is lost."""
        began = self._now()
        one = Operation(kind, self.number, "unknown", began, 0.0, 0.0, steps=steps)
        try:
            yield one
        except Closed:
            one.error = "closed"
        one.ended = self._now()
        one.took = one.ended - began
        if one.outcome == "unknown":
            one.ended = float("inf")
            if not one.writes:
                one.outcome = "refused"
        self._stage.note(one)

    @staticmethod
    def _done(one: Operation, answer: Answer, steps: list[Step]) -> None:
        one.outcome, one.revision, one.steps, one.told = "done", answer.revision, steps, len(steps)
        one.error = "" if answer.ok or answer.status == HTTPStatus.NOT_FOUND else answer.code

    @staticmethod
    def _not_done(one: Operation, answer: Answer) -> None:
        one.error = answer.code
        if answer.status != HTTPStatus.INTERNAL_SERVER_ERROR:
            one.outcome = "refused"

    # -- programs of one request --

    async def _one(self, step: Step) -> Operation:
        wire = WIRE[step.what]
        async with self._noting(step.what, [step]) as one:
            answer = await self._ask(wire.request(step))
            if answer.status in wire.statuses:
                self._done(one, answer, [resulting(step, wire.result(answer))])
            else:
                self._not_done(one, answer)
        return one

    async def get(self) -> None:
        """Read a key."""
        await self._one(Step("get", self._key()))

    async def put(self) -> None:
        """Write a key."""
        await self._one(Step("put", self._key(), self._value()))

    async def swap(self) -> None:
        """Read a key, and write it if it is still the same."""
        one = await self._one(Step("get", self._key()))
        if one.outcome == "done":
            [read] = one.steps
            expected = read.result[1] if read.result else 0
            await self._one(Step("swap", read.key, [expected, self._value()]))

    async def delete(self) -> None:
        """Remove a key."""
        await self._one(Step("delete", self._key()))

    async def scan(self) -> None:
        """Read some keys in a row, all of one moment."""
        await self._one(self._scan())

    async def batch(self) -> None:
        """Do several things as one."""
        steps = [self._operation() for _ in range(self._random.randint(1, 5))]
        async with self._noting("batch", steps) as one:
            answer = await self._ask(batch(steps))
            if answer.ok:
                self._done(one, answer, batched(steps, answer))
            else:
                self._not_done(one, answer)

    async def once(self) -> None:
        """Write a key with an idempotency key, as often as it takes to get an answer."""
        step = Step("put", self._key(), self._value())
        method, target, body, headers = WIRE["put"].request(step)
        again = {**headers, "Idempotency-Key": f"{self._stage.history.prefix}{step.argument}"}
        async with self._noting("once", [step]) as one:
            while one.outcome == "unknown":
                try:
                    answer = await self._ask(Request(method, target, body, again))
                except Closed:
                    self._stage.retries += 1
                    continue
                if answer.ok:
                    self._done(one, answer, [resulting(step, WIRE["put"].result(answer))])
                    # Told again later, it is still of the revision that it was.
                    one.revision = msgspec.json.decode(answer.body)["revision"]
                elif answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    self._not_done(one, answer)
                else:
                    self._stage.retries += 1
                    await asyncio.sleep(KNOCK)

    # -- what is chosen --

    def _key(self) -> str:
        return self._stage.key(self._random)

    def _value(self) -> str:
        """Return a value that nobody else has."""
        self._made += 1
        return f"{self.number}.{self._made}"

    def _scan(self) -> Step:
        start, end = sorted(self._key() for _ in range(2))
        limit = self._random.choice([1, 5, 20, 100])
        return Step("scan", start, [end, limit, self._random.choice([True, False])])

    def _operation(self) -> Step:
        """Choose an operation of a batch."""
        key = self._key()
        # It and those that differ in its last digit.
        ten = key[:-1]
        steps = [
            *3 * [Step("put", key, self._value()), Step("get", key)],
            *2 * [Step("add", self._stage.counter(self._random), self._random.randint(-3, 3))],
            *(Step("delete", key), Step("scan", ten, [f"{ten}~", 10, False])),
            Step("clear", ten, f"{ten}~"),
        ]
        return self._random.choice(steps)

    # -- isolated transactions --

    async def transaction(self) -> None:
        """Read and write in an isolated transaction, perhaps nested; again, if it conflicts."""
        for attempt in range(TRIES):
            one = await self._attempt()
            if one.error != _CONFLICT:
                return
            self._stage.retries += 1
            await asyncio.sleep(self._random.random() * BACKOFF * 2**attempt)

    async def _attempt(self) -> Operation:
        started = self._now()
        one = Operation("transaction", self.number, "refused", started, started, 0.0, steps=[])
        try:
            opened = await self._ask(Request("POST", "/v1/transactions"))
            if opened.ok:
                await self._inside(one, msgspec.json.decode(opened.body)["id"])
            else:
                one.error = opened.code
        except Ended as error:
            one.error = str(error)
        except Closed:
            one.error = "closed"
        one.took = self._now() - started
        self._stage.note(one)
        return one

    async def _inside(self, one: Operation, within: str) -> None:
        """Take some steps, and commit or not. What is seen is noted after each step."""
        depth = 1
        for _ in range(self._random.randint(1, 7)):
            what = self._random.choice(["step", "step", "step", "scan", "batch", "begin", "end"])
            if what == "begin" or (what == "end" and depth == 1):
                await self._see(one, within, Step("begin"))
                depth += 1
            elif what == "end":
                await self._see(one, within, Step(self._random.choice(["rollback", "commit"])))
                depth -= 1
            elif what == "batch":
                await self._see(one, within, self._operation(), batch=True)
            elif what == "scan":
                await self._see(one, within, self._scan())
            else:
                await self._see(one, within, self._step())
        for _ in range(depth - 1):
            await self._see(one, within, Step("commit"))
        if self._random.randrange(10):
            await self._commit(one, within)
        else:
            await self._ask(Request("DELETE", f"/v1/transactions/{within}"))
            one.error = "dropped"

    def _step(self) -> Step:
        """Choose a step for one key."""
        key = self._key()
        put, get = Step("put", key, self._value()), Step("get", key)
        return self._random.choice([put, put, get, get, Step("delete", key)])

    async def _see(self, one: Operation, within: str, step: Step, *, batch: bool = False) -> None:
        """Take a step of an isolated transaction. Raises `Ended` if that has ended."""
        began = self._now()
        if batch:
            [result], answer = await self._batched(step, within)
        elif step.what in WIRE:
            routes = SEED if self._random.randrange(2) else WIRE
            result, answer = await self._take(routes.get(step.what, WIRE[step.what]), step, within)
            if step.what == "put":
                # Who only writes has read nothing, and is told nothing.
                result = step
        else:
            request = Request("POST", f"/v1/transactions/{within}/{step.what}")
            result, answer = step, _alive(await self._ask(request))
        one.steps.append(result)
        one.outcome, one.told, one.revision = "seen", len(one.steps), answer.revision
        one.began, one.ended = began, self._now()

    async def _batched(self, step: Step, within: str) -> tuple[list[Step], Answer]:
        answer = _alive(await self._ask(batch([step]), within))
        return batched([step], answer), answer

    async def _take(self, wire: Wire, step: Step, within: str) -> tuple[Step, Answer]:
        answer = _alive(await self._ask(wire.request(step), within))
        return resulting(step, wire.result(answer)), answer

    async def _commit(self, one: Operation, within: str) -> None:
        began, lost, answer = self._now(), False, None
        while answer is None:
            try:
                answer = await self._ask(Request("POST", f"/v1/transactions/{within}/commit"))
            except Closed:
                # It may be repeated, and the server remembers, if it is still the same one.
                lost = True
                self._stage.retries += 1
        if answer.ok and not lost:
            one.outcome, one.revision, one.began = "done", answer.revision, began
            one.ended = self._now()
        elif answer.status != HTTPStatus.CONFLICT and (
            lost or answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
        ):
            # A repeated answer does not say at which revision it happened, and some say nothing.
            one.outcome, one.began, one.ended = "unknown", began, float("inf")
        if not answer.ok:
            one.error = answer.code

    # -- the shared transaction --

    async def shared(self) -> None:
        """Read and write in the shared transaction, perhaps nested. Read a key, if it is taken."""
        stage = self._stage
        if stage.shared.locked() or stage.shared_lost == stage.life:
            await self.get()
            return
        async with stage.shared:
            life = stage.life
            try:
                await self._speak(await self._connect())
            except (Closed, Ended):
                stage.shared_lost = life

    async def _speak(self, connection: Connection) -> None:
        """Begin, take some steps, and commit or not: all on one connection, because another one may
        be to another life of the server, where nothing has begun.
        """
        written: list[Step] = []
        levels = ["begin"]
        await self._say(connection, "begin")
        for _ in range(self._random.randint(2, 7)):
            what = self._random.choice(["step", "step", "step", "begin", "end"])
            if what == "step":
                await self._step_in_shared(connection, written, self._step())
            elif what == "begin" or len(levels) == 1:
                await self._say(connection, "begin")
                written.append(Step("begin"))
                levels.append("begin")
            else:
                how = self._random.choice(["rollback", "commit"])
                await self._say(connection, how)
                written.append(Step(how))
                levels.pop()
        for _ in levels[1:]:
            await self._say(connection, "commit")
            written.append(Step("commit"))
        if not self._random.randrange(4):
            await self._say(connection, "rollback")
            return
        async with self._noting("shared", written) as one:
            answer = await self._ask_on(connection, Request("POST", "/commit"))
            if answer.ok:
                one.outcome, one.revision = "done", answer.revision
            else:
                self._not_done(one, answer)
        if one.outcome != "done":
            raise Ended(one.error)

    async def _step_in_shared(self, connection: Connection, written: list[Step], step: Step) -> None:
        """Take a step. What it reads is true of that revision, and what was written on top."""
        wire, began = SEED[step.what], self._now()
        answer = _alive(await self._ask_on(connection, wire.request(step)))
        if step.what == "put":
            written.append(step)
            return
        ended = self._now()
        result = resulting(step, wire.result(answer))
        one = Operation("shared read", self.number, "seen", began, ended, ended - began)
        one.revision, one.steps = answer.revision, [*written, result]
        # Of what was written before nothing is told; its steps have no results.
        one.told = len(one.steps)
        self._stage.note(one)
        if step.what == "delete" and result.result:
            written.append(Step("drop", step.key))

    async def _say(self, connection: Connection, what: str) -> None:
        _alive(await self._ask_on(connection, Request("POST", f"/{what}")))


def _alive(answer: Answer) -> Answer:
    """Return an answer from within a transaction. Raises `Ended` if it says that there is none."""
    missing = answer.status == HTTPStatus.NOT_FOUND and answer.code in {
        "key_not_found",
        "Key not found",
    }
    if answer.ok or missing:
        return answer
    conflict = answer.status == HTTPStatus.CONFLICT
    raise Ended(_CONFLICT if conflict else answer.code)


#: Every program that there is, by its name in a mix.
PROGRAMS: Final[dict[str, Callable[[Client], Awaitable[None]]]] = {
    program.__name__: program
    for program in (
        *(Client.get, Client.put, Client.once, Client.swap, Client.delete, Client.scan),
        *(Client.batch, Client.transaction, Client.shared),
    )
}

#: How often each is done, of 100 times.
MIX: Final[Mapping[str, int]] = {
    **dict.fromkeys(["get", "put"], 22),
    **dict.fromkeys(["batch", "transaction"], 13),
    **dict.fromkeys(["swap", "delete"], 8),
    **dict.fromkeys(["scan", "once"], 5),
    "shared": 4,
}
