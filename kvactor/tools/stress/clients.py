"""The clients: how they reach the server, choose operations, and record the responses.

The rule: clients record what was sent and received, and conclude nothing from it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from random import Random
from typing import Final

import msgspec

from kvactor.tools.connections import AsyncConnection
from kvactor.tools.http import Closed, Response
from kvactor.tools.stress.encoding import Request
from kvactor.tools.stress.history import NEVER, History, Operation, Step

#: Seconds after which a server that does not respond, or does not come back, hangs.
TIMEOUT: Final = 60.0

#: Seconds between two tries to connect, or to get in.
RETRY_DELAY: Final = 0.02


#: Milliseconds after which keys expire. As fractions of seconds, they are exact in the server.
TTLS: Final = (20, 50, 100, 200)

#: In the place of a transaction's id: the request is none of a transaction's.
AUTOCOMMIT: Final = None


class Hangs(Exception):
    """The server has not responded, or not come back, for `TIMEOUT` seconds."""


class Workload:
    """The clients of a run share it: the server, the keys, the history, and the shared transaction,
    which one client at a time uses.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AsyncConnection]],
        history: History,
        keys: int = 200,
        hot: bool = False,
        ttl: float = 0.0,
        operations: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.connect = connect
        self.history = history
        #: seconds by which operations are timed; of the loop, if it is not given
        self.now = clock or asyncio.get_running_loop().time
        #: how many operations are left; None: until it is `stopped`
        self.left = operations
        self.stopped = False
        self.retries = 0
        #: how often the server was started
        self.incarnation = 1
        self.shared = asyncio.Lock()
        #: in which incarnation a request in the shared transaction was lost: it may still arrive
        #: then, inside the next transaction
        self.shared_lost_in = 0
        self._keys = keys
        self._power = 4 if hot else 1
        self._ttl = ttl
        #: whether the server says at what time it decides; otherwise it cannot be checked what expires
        self.timed = False

    def key(self, random: Random) -> str:
        """Choose one of the keys; if some are hot, those most of the time."""
        return f"{self.history.prefix}{int(random.random() ** self._power * self._keys):05}"

    def ttl(self, random: Random) -> int:
        """Choose after how many milliseconds a key expires; 0: never."""
        return random.choice(TTLS) if random.random() < self._ttl and self.timed else 0

    def counter(self, random: Random) -> str:
        """Choose one of the keys that hold numbers."""
        return f"{self.history.prefix}n{random.randrange(5)}"

    def note(self, one: Operation) -> None:
        """Add an operation to the history."""
        self.history.operations.append(one)
        if self.left is not None:
            self.left -= 1

    @property
    def over(self) -> bool:
        """Whether clients begin nothing more."""
        return self.stopped or (self.left is not None and self.left <= 0)


class Client:
    """One client: a connection at a time, programs one after the other."""

    def __init__(
        self, number: int, workload: Workload, random: Random, mix: "Mapping[Program, int]"
    ) -> None:
        self.number = number
        self.workload = workload
        self.random = random
        self._programs, self._weights = list(mix), list(mix.values())
        self._connection: AsyncConnection | None = None
        self._made = 0
        self.now = workload.now

    async def play(self) -> None:
        """Do one thing after the other until all is done.

        Raises `Hangs`, and `ValueError` for an invalid response.
        """
        while not self.workload.over:
            [program] = self.random.choices(self._programs, self._weights)
            await program(self)
        if self._connection is not None:
            self._connection.close()

    # -- requests --

    async def connect(self) -> AsyncConnection:
        """Return its connection, made anew if it has to be. Raises `Hangs`."""
        if self._connection is None or not self._connection.open:
            deadline = self.now() + TIMEOUT
            while True:
                try:
                    self._connection = await self.workload.connect()
                    break
                except ConnectionError as error:
                    if self.now() > deadline:
                        raise Hangs(f"the server cannot be reached: {error}") from error
                    await asyncio.sleep(RETRY_DELAY)
        return self._connection

    async def ask(self, request: Request, transaction: str | None = AUTOCOMMIT) -> Response:
        """Return the response. Raises `Closed` if the outcome is unknown, and `Hangs`."""
        return await self.ask_on(await self.connect(), request, transaction)

    async def ask_on(
        self, connection: AsyncConnection, request: Request, transaction: str | None = None
    ) -> Response:
        """The same, on a certain connection."""
        method, target, body, headers = request
        if transaction is not AUTOCOMMIT:
            headers = {**headers, "Kvactor-Transaction": transaction}
        content = b"" if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(TIMEOUT):
                response = await connection.request(method, target, content, headers)
        except TimeoutError:
            raise Hangs(f"no response to {method} {target} for {TIMEOUT:g} s") from None
        self.workload.timed = self.workload.timed or response.time > 0
        return response

    # -- notes --

    @asynccontextmanager
    async def noting(self, kind: str, steps: list[Step]) -> AsyncIterator[Operation]:
        """Record an operation when it has ended. Its outcome is `info` if its response is lost."""
        began = self.now()
        one = Operation(kind, self.number, "info", began, 0.0, 0.0, steps=steps)
        try:
            yield one
        except Closed:
            one.error = "closed"
        one.ended = self.now()
        one.took = one.ended - began
        if one.outcome == "info":
            one.ended = NEVER
            if not one.writes:
                one.outcome = "fail"
        self.workload.note(one)

    @staticmethod
    def ok(one: Operation, response: Response, steps: list[Step]) -> None:
        """Record that an operation happened, with the results of its steps."""
        one.outcome, one.revision, one.steps, one.told = "ok", response.revision, steps, len(steps)
        one.time = response.time
        one.error = "" if response.ok or response.status == HTTPStatus.NOT_FOUND else response.code

    @staticmethod
    def not_ok(one: Operation, response: Response) -> None:
        """Record why an operation did not happen; after a 500 that is unknown, and it stays `info`."""
        one.error = response.code
        if response.status != HTTPStatus.INTERNAL_SERVER_ERROR:
            one.outcome = "fail"

    # -- what is chosen --

    def key(self) -> str:
        """Choose a key."""
        return self.workload.key(self.random)

    def value(self) -> str:
        """Return a value that is used once."""
        self._made += 1
        return f"{self.number}.{self._made}"

    def put(self) -> Step:
        """Choose a key, and whether it will expire."""
        return Step("put", self.key(), self.value(), ttl=self.workload.ttl(self.random))

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
            *3 * [self.put(), Step("get", key)],
            *2 * [Step("increment", self.workload.counter(self.random), self.random.randint(-3, 3))],
            *(Step("delete", key), Step("scan", ten, [f"{ten}~", 10, False])),
            Step("delete_range", ten, f"{ten}~"),
        ]
        return self.random.choice(steps)

    def step(self) -> Step:
        """Choose a step for one key."""
        put, get = self.put(), Step("get", self.key())
        return self.random.choice([put, put, get, get, Step("delete", get.key)])


#: One thing that a user of the server might do, from its first request to its end.
Program = Callable[[Client], Awaitable[None]]

#: How often each program is run, relative to the others.
Mix = Mapping[Program, int]
