"""Followers of the changes: one that keeps the record, by pages, and others that check on it, by
server-sent events.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus

import msgspec

from kvactor.tools.stress.client import Answer, Connection, Stream
from kvactor.tools.stress.clients import KNOCK, PATIENCE, Hangs
from kvactor.tools.stress.history import History, Item, Sighting
from kvactor.tools.stress.wire import items, sighting

#: Revisions and keys in a page.
PAGE = 1000


class Behind(Exception):
    """The changes cannot be followed any more; the message says why."""


class Reader:
    """Reads the changes and the keys of a run, on a connection of its own that is made anew as often
    as it takes.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], prefix: str) -> None:
        self._connect = connect
        self._prefix = prefix
        self._connection: Connection | None = None

    async def _ask(self, target: str, method: str = "GET") -> Answer:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._insist(method, target)
        except TimeoutError:
            raise Hangs(f"no answer to {method} {target} for {PATIENCE:g} s") from None

    async def _insist(self, method: str, target: str) -> Answer:
        while True:
            try:
                if self._connection is None or not self._connection.open:
                    self._connection = await self._connect()
                answer = await self._connection.ask(method, target)
            except ConnectionError:
                await asyncio.sleep(KNOCK)
                continue
            if answer.ok:
                return answer
            if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Behind(f"{method} {target} was refused: {answer.code}")
            await asyncio.sleep(KNOCK)

    async def revision(self) -> int:
        """Return the newest durable revision."""
        return (await self._ask("/v1/status")).revision

    async def changes(self, since: int, wait: float = 0) -> tuple[list[Sighting], int]:
        """Return the next revisions after one, and from where to go on."""
        query = f"since={since}&prefix={self._prefix}&limit={PAGE}&wait={wait:g}"
        page = msgspec.json.decode((await self._ask(f"/v1/changes?{query}")).body)
        return [sighting(event) for event in page["revisions"]], page["since"]

    async def keys(self) -> list[Item]:
        """Return all keys and values."""
        found: list[Item] = []
        cursor = ""
        while True:
            answer = await self._ask(f"/v1/kv?prefix={self._prefix}&limit={PAGE}{cursor}")
            found += items(answer)
            following = msgspec.json.decode(answer.body)["cursor"]
            if following is None:
                return found
            cursor = f"&cursor={following}"

    async def clear(self) -> None:
        """Remove all keys. Raises `Behind` if there are more than the server removes at once."""
        await self._ask(f"/v1/kv?prefix={self._prefix}", "DELETE")

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()


async def record(reader: Reader, history: History, since: int) -> None:
    """Keep the record, for ever. Raises `Behind`."""
    while True:
        sightings, since = await reader.changes(since, wait=1)
        history.feed += sightings
        history.revision = since


async def complete(reader: Reader, history: History) -> None:
    """Bring the record to its end, read what is there then, and read the changes once more: they must
    not have become others, by a crash for example. What is not kept any more is not read.
    """
    newest = await reader.revision()
    while history.revision < newest:
        sightings, history.revision = await reader.changes(history.revision)
        history.feed += sightings
    history.final = await reader.keys()
    again: list[Sighting] = []
    since = max(0, history.feed[0].revision - 1) if history.feed else newest
    while since < newest:
        try:
            sightings, since = await reader.changes(since)
        except Behind:
            again, since = [], min(newest, since + PAGE)
            continue
        again += sightings
    history.followers.append(again)


async def follow(
    connect: Callable[[Callable[[], Stream]], Awaitable[Stream]],
    prefix: str,
    sightings: list[Sighting],
    since: int,
) -> None:
    """Follow the changes by server-sent events, for ever, and go on where it was when cut off.

    Raises `Behind`.
    """
    target = f"/v1/changes?prefix={prefix}"
    while True:
        with suppress(ConnectionError):
            stream = await connect(partial(Stream, target, since))
            try:
                since = await _events(stream, sightings, since)
            finally:
                stream.close()
        await asyncio.sleep(KNOCK)


async def _events(stream: Stream, sightings: list[Sighting], since: int) -> int:
    """Take events in until the stream ends; return from where to go on."""
    status = await stream.lines.get()
    if status is not None and f" {HTTPStatus.GONE.value} " in status:
        raise Behind(f"a follower is behind the history that is kept, at revision {since}")
    last = since
    while (line := await stream.lines.get()) is not None:
        if line.startswith("id: "):
            last = int(line[4:])
        elif line.startswith("data: "):
            sightings.append(sighting(msgspec.json.decode(line[6:])))
            since = last
    return since
