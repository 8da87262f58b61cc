"""Contention: long transactions that change the same hot keys, beside single writes of them.

The rule: all that was acknowledged is counted here, and compared with what the keys hold in the end. A
transaction adds 1 to each hot key and to a counter of its client's own; a single write adds 1 to one
hot key. So a change that is lost, or done twice, is a sum that is wrong.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any, Final

import msgspec
import uvloop

from kvactor.tools.connections import AsyncConnection
from kvactor.tools.hostile.run import serving
from kvactor.tools.http import NO_HEADERS, Response

#: Clients with transactions, and clients with single writes.
LONG: Final = 10
SINGLE: Final = 100

#: Writes a second of each client with single writes. Half of them are of hot keys.
RATE: Final = 10

HOT: Final = tuple(f"hot/{number}" for number in range(10))

#: Requests between a transaction's reads and its writes.
ROUND_TRIPS: Final = 3

#: Seconds after which a request has failed.
TIMEOUT: Final = 60.0

#: Seconds in which each client with transactions commits at least once.
GOAL: Final = 5.0

GOALS: Final = (
    f"each client with transactions commits within {GOAL:g} s, again and again (commits); each "
    "acknowledged change is there exactly once (exactly once); no request fails (failures)"
)


class Contended(msgspec.Struct):
    """What has happened in `seconds`. Times are seconds from the beginning, latencies milliseconds."""

    seconds: float
    #: of each client with transactions, when its commits were acknowledged
    commits: list[list[float]]
    #: conflicts of each client with transactions
    conflicts: list[int]
    #: of the single writes of hot keys, and of others
    hot: list[float] = []
    other: list[float] = []
    #: acknowledged single writes of each hot key
    added: Counter[str] = Counter()
    #: responses that are neither success nor a conflict
    failures: Counter[str] = Counter()
    #: what the keys hold in the end
    held: dict[str, int] = {}

    @property
    def gaps(self) -> list[float]:
        """The longest time without a commit of each client."""
        return [
            max(later - one for one, later in pairwise([0.0, *times, max(self.seconds, *times, 0.0)]))
            for times in self.commits
        ]

    @property
    def expected(self) -> dict[str, int]:
        """What the keys have to hold."""
        commits = sum(map(len, self.commits))
        counters = {_counter(number): len(times) for number, times in enumerate(self.commits)}
        return counters | {key: commits + self.added[key] for key in HOT}

    @property
    def missed(self) -> list[str]:
        """The goals that are missed."""
        goals = {
            "commits": max(self.gaps) < GOAL,
            "exactly once": self.held == self.expected,
            "failures": not self.failures,
        }
        return [name for name, met in goals.items() if not met]


def _counter(number: int) -> str:
    return f"counter/{number}"


def contend(seconds: float, environ: Mapping[str, str] | None = None) -> Contended:
    """Start a server, let the clients contend for so long, and count. Raises `ServerFailed`."""
    with serving(environ) as server:
        return uvloop.run(_Contention(server.host, server.port, seconds).run())


class _Contention:
    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._where = host, port
        self._seconds = seconds
        self._began = 0.0
        self._found = Contended(seconds, [[] for _ in range(LONG)], [0] * LONG)

    async def run(self) -> Contended:
        found = self._found
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(LONG):
                group.create_task(self._transact(number))
            for number in range(SINGLE):
                group.create_task(self._write(number))
        connection = await self._connect()
        keys = [*map(_counter, range(LONG)), *HOT]
        items = (await _batch(connection, ({"op": "get", "key": key} for key in keys))).json()[
            "results"
        ]
        found.held = {key: item["value"] if item else 0 for key, item in zip(keys, items, strict=True)}
        connection.close()
        return found

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    async def _connect(self) -> AsyncConnection:
        _, connection = await asyncio.get_running_loop().create_connection(
            AsyncConnection, *self._where
        )
        return connection

    async def _transact(self, number: int) -> None:
        """Commit one transaction after the other. After a conflict, the next one names the last one."""
        connection, conflicted = await self._connect(), ""
        while self._now < self._seconds:
            wish = {"retry_of": conflicted} if conflicted else {}
            opened = await _ask(connection, "POST", "/v1/transactions", msgspec.json.encode(wish))
            response, id_ = opened, ""
            if opened.ok:
                id_ = opened.json()["id"]
                response = await self._change(connection, number, id_)
            if response.ok:
                self._found.commits[number].append(self._now)
                conflicted = ""
            elif response.code == "transaction_conflict":
                self._found.conflicts[number] += 1
                conflicted = id_
            else:
                self._found.failures[response.code] += 1
        connection.close()

    async def _change(self, connection: AsyncConnection, number: int, id_: str) -> Response:
        """Read, ask, write and commit; return the response to the commit, or the first that is none."""
        path, headers = f"/v1/transactions/{id_}", {"Kvactor-Transaction": id_}
        response = await _batch(connection, ({"op": "get", "key": key} for key in HOT), headers)
        if not response.ok:
            return response
        items = response.json()["results"]
        for _ in range(ROUND_TRIPS):
            response = await _ask(connection, "GET", path)
            if not response.ok:
                return response
        puts = [
            {"op": "put", "key": key, "value": (item["value"] if item else 0) + 1}
            for key, item in zip(HOT, items, strict=True)
        ]
        counted = {"op": "increment", "key": _counter(number)}
        response = await _batch(connection, [*puts, counted], headers)
        return await _ask(connection, "POST", f"{path}/commit") if response.ok else response

    async def _write(self, number: int) -> None:
        """Add to a hot key and write a key of its own, in turns, at a steady rate."""
        random, found = Random(number), self._found
        await asyncio.sleep(random.random() / RATE)
        connection, turn = await self._connect(), 0
        while self._now < self._seconds:
            began, turn, hot = self._now, turn + 1, random.choice(HOT)
            if turn % 2:
                latencies = found.hot
                response = await _batch(connection, [{"op": "increment", "key": hot}])
                found.added[hot] += response.ok
            else:
                latencies = found.other
                response = await _ask(connection, "PUT", f"/v1/kv/single/{number}", b"x")
            latencies.append((self._now - began) * 1000)
            if not response.ok:
                found.failures[response.code] += 1
            await asyncio.sleep(max(0.0, began + 1 / RATE - self._now))
        connection.close()


async def _ask(
    connection: AsyncConnection,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    async with asyncio.timeout(TIMEOUT):
        return await connection.request(method, path, body, headers)


async def _batch(
    connection: AsyncConnection,
    operations: Iterable[Mapping[str, Any]],
    headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    body = msgspec.json.encode({"operations": list(operations)})
    return await _ask(connection, "POST", "/v1/batch", body, headers)


def lines(found: Contended) -> Sequence[str]:
    """Return the report."""
    return [
        f"contention for {found.seconds:g} s: {', '.join(found.missed) or 'ok'}",
        f"goals: {GOALS}",
        f"commits of each of {LONG}: {' '.join(str(len(times)) for times in found.commits)}",
        f"longest without one (s): {' '.join(f'{gap:.2f}' for gap in found.gaps)}",
        f"conflicts: {sum(found.conflicts)}",
        f"single writes of {SINGLE} clients: {len(found.hot)} hot, {len(found.other)} others",
        f"the slowest of them (ms): {max(found.hot, default=0):.1f}, {max(found.other, default=0):.1f}",
        *(
            f"{key} holds {found.held[key]}, not {sum_}"
            for key, sum_ in found.expected.items()
            if found.held[key] != sum_
        ),
        *(f"{count} x {what}" for what, count in found.failures.items()),
    ]
