"""The clients: how they reach the server, what they choose, and how they note what they were told.

The rule: what is noted is what was sent and told, and nothing is concluded from it here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from random import Random
from typing import Final

import msgspec

from kvactor.tools.stress.client import Answer, Closed, Connection
from kvactor.tools.stress.history import NEVER, History, Operation, Step
from kvactor.tools.stress.wire import Request

#: Seconds after which a server that does not answer hangs, or one that is down does not come back.
PATIENCE: Final = 60.0

#: Seconds between two tries to connect, or to get in.
KNOCK: Final = 0.02


class Hangs(Exception):
    """The server has not answered, or not come back, for `PATIENCE` seconds."""


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
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.connect = connect
        self.history = history
        #: seconds by which operations are timed; of the loop, if it is not given
        self.now = clock or asyncio.get_running_loop().time
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

    def __init__(self, number: int, stage: Stage, random: Random, mix: "Mapping[Program, int]") -> None:
        self.number = number
        self.stage = stage
        self.random = random
        self._programs, self._weights = list(mix), list(mix.values())
        self._connection: Connection | None = None
        self._made = 0
        self.now = stage.now

    async def play(self) -> None:
        """Do one thing after the other until all is done.

        Raises `Hangs`, and `ValueError` for an answer that is none.
        """
        while not self.stage.done:
            [program] = self.random.choices(self._programs, self._weights)
            await program(self)
        if self._connection is not None:
            self._connection.close()

    # -- requests --

    async def connect(self) -> Connection:
        """Return its connection, made anew if it has to be. Raises `Hangs`."""
        if self._connection is None or not self._connection.open:
            deadline = self.now() + PATIENCE
            while True:
                try:
                    self._connection = await self.stage.connect()
                    break
                except ConnectionError as error:
                    if self.now() > deadline:
                        raise Hangs(f"the server cannot be reached: {error}") from error
                    await asyncio.sleep(KNOCK)
        return self._connection

    async def ask(self, request: Request, within: str | None = None) -> Answer:
        """Return an answer. Raises `Closed` if nobody knows what happened, and `Hangs`."""
        return await self.ask_on(await self.connect(), request, within)

    @staticmethod
    async def ask_on(connection: Connection, request: Request, within: str | None = None) -> Answer:
        """The same, on a certain connection."""
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
    async def noting(self, kind: str, steps: list[Step]) -> AsyncIterator[Operation]:
        """Note an operation when it has ended. Its outcome is unknown if its answer is lost."""
        began = self.now()
        one = Operation(kind, self.number, "unknown", began, 0.0, 0.0, steps=steps)
        try:
            yield one
        except Closed:
            one.error = "closed"
        one.ended = self.now()
        one.took = one.ended - began
        if one.outcome == "unknown":
            one.ended = NEVER
            if not one.writes:
                one.outcome = "refused"
        self.stage.note(one)

    @staticmethod
    def done(one: Operation, answer: Answer, steps: list[Step]) -> None:
        """Note that an operation happened, and what its steps were told."""
        one.outcome, one.revision, one.steps, one.told = "done", answer.revision, steps, len(steps)
        one.error = "" if answer.ok or answer.status == HTTPStatus.NOT_FOUND else answer.code

    @staticmethod
    def not_done(one: Operation, answer: Answer) -> None:
        """Note why an operation was not done; or that the server itself does not know."""
        one.error = answer.code
        if answer.status != HTTPStatus.INTERNAL_SERVER_ERROR:
            one.outcome = "refused"

    # -- what is chosen --

    def key(self) -> str:
        """Choose a key."""
        return self.stage.key(self.random)

    def value(self) -> str:
        """Return a value that nobody else has."""
        self._made += 1
        return f"{self.number}.{self._made}"

    def scan(self) -> Step:
        """Choose a range, and how much of it."""
        start, end = sorted(self.key() for _ in range(2))
        limit = self.random.choice([1, 5, 20, 100])
        return Step("scan", start, [end, limit, self.random.choice([True, False])])

    def operation(self) -> Step:
        """Choose an operation of a batch."""
        key = self.key()
        # It and those that differ in its last digit.
        ten = key[:-1]
        steps = [
            *3 * [Step("put", key, self.value()), Step("get", key)],
            *2 * [Step("add", self.stage.counter(self.random), self.random.randint(-3, 3))],
            *(Step("delete", key), Step("scan", ten, [f"{ten}~", 10, False])),
            Step("clear", ten, f"{ten}~"),
        ]
        return self.random.choice(steps)

    def step(self) -> Step:
        """Choose a step for one key."""
        key = self.key()
        put, get = Step("put", key, self.value()), Step("get", key)
        return self.random.choice([put, put, get, get, Step("delete", key)])


#: One thing that a user of the server might do, from its first request to its end.
Program = Callable[[Client], Awaitable[None]]
