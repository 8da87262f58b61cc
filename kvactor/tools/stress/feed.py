"""Followers of the changes: one records them, by pages; others follow by server-sent events, and the
checker compares them with the record.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus

import msgspec

from kvactor.tools.connections import AsyncConnection, AsyncEventStream
from kvactor.tools.http import Response
from kvactor.tools.stress.clients import RETRY_DELAY, TIMEOUT, Hangs
from kvactor.tools.stress.encoding import feed_event, items
from kvactor.tools.stress.history import FeedEvent, History, Item

#: Revisions and keys in a page.
PAGE = 1000


class Behind(Exception):
    """The changes can no longer be followed; the message says why."""


class Reader:
    """Reads the changes and the keys of a run, on a connection of its own.

    Its requests may be repeated: after a lost connection it connects again, and sends them again.
    """

    def __init__(self, connect: Callable[[], Awaitable[AsyncConnection]], prefix: str) -> None:
        self._connect = connect
        self._prefix = prefix
        self._connection: AsyncConnection | None = None

    async def _ask(self, target: str, method: str = "GET") -> Response:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._insist(method, target)
        except TimeoutError:
            raise Hangs(f"no response to {method} {target} for {TIMEOUT:g} s") from None

    async def _insist(self, method: str, target: str) -> Response:
        while True:
            try:
                if self._connection is None or not self._connection.open:
                    self._connection = await self._connect()
                response = await self._connection.request(method, target)
            except ConnectionError:
                await asyncio.sleep(RETRY_DELAY)
                continue
            if response.ok:
                return response
            if response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Behind(f"{method} {target} was refused: {response.code}")
            await asyncio.sleep(RETRY_DELAY)

    async def revision(self) -> int:
        """Return the newest durable revision."""
        return (await self._ask("/v1/status")).revision

    async def changes(self, since: int, wait: float = 0) -> tuple[list[FeedEvent], int]:
        """Return the next revisions after one, and from where to go on."""
        query = f"since={since}&prefix={self._prefix}&limit={PAGE}&wait={wait:g}"
        page = msgspec.json.decode((await self._ask(f"/v1/changes?{query}")).body)
        return [feed_event(event) for event in page["revisions"]], page["since"]

    async def keys(self) -> tuple[list[Item], int]:
        """Return all keys and values, and the time of the last response (0: it does not say)."""
        found: list[Item] = []
        cursor = ""
        while True:
            response = await self._ask(f"/v1/kv?prefix={self._prefix}&limit={PAGE}{cursor}")
            found += items(response)
            following = msgspec.json.decode(response.body)["cursor"]
            if following is None:
                return found, response.time
            cursor = f"&cursor={following}"

    async def clear(self) -> None:
        """Remove all keys. Raises `Behind` if there are more than the server removes at once."""
        await self._ask(f"/v1/kv?prefix={self._prefix}", "DELETE")

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()


async def record(reader: Reader, history: History, since: int) -> None:
    """Record the changes until cancelled. Raises `Behind`."""
    while True:
        events, since = await reader.changes(since, wait=1)
        history.feed += events
        history.revision = since


async def complete(reader: Reader, history: History) -> None:
    """Read the changes to their end, then all keys, then the kept changes once more: nothing, such as a
    crash, may have altered them.
    """
    newest = await reader.revision()
    while history.revision < newest:
        events, history.revision = await reader.changes(history.revision)
        history.feed += events
    history.final, history.time = await reader.keys()
    again: list[FeedEvent] = []
    since = max(0, history.feed[0].revision - 1) if history.feed else newest
    while since < newest:
        try:
            events, since = await reader.changes(since)
        except Behind:
            again, since = [], min(newest, since + PAGE)
            continue
        # Keys may have expired meanwhile.
        again += [event for event in events if event.revision <= history.revision]
    history.followers.append(again)


async def follow(
    connect: Callable[[Callable[[], AsyncEventStream]], Awaitable[AsyncEventStream]],
    prefix: str,
    events: list[FeedEvent],
    since: int,
) -> None:
    """Follow the changes by server-sent events until cancelled, and resume after each disconnection.

    Raises `Behind`, and `ValueError` for an invalid stream.
    """
    target = f"/v1/changes?prefix={prefix}"
    while True:
        with suppress(ConnectionError):
            stream = await connect(partial(AsyncEventStream, target, since))
            try:
                since = await _events(stream, events, since)
            finally:
                stream.close()
        await asyncio.sleep(RETRY_DELAY)


async def _events(stream: AsyncEventStream, events: list[FeedEvent], since: int) -> int:
    """Collect events until the stream ends; return the revision to resume from."""
    if await stream.status == HTTPStatus.GONE:
        raise Behind(f"a follower is behind the history that is kept, at revision {since}")
    with suppress(ConnectionError):  # what has come before is not asked for again
        while (event := await stream.receive()) is not None:
            events.append(feed_event(msgspec.json.decode(event.data)))
            since = int(event.id)
    return since
