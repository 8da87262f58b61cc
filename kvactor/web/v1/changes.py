"""The changes feed: GET /v1/changes, as pages, as a long poll, or as server-sent events.

The rule: a follower asks for the next revisions when it has room for them. So a slow reader holds at
most the text of one reading, `BYTES_PER_READ` and a revision, and is disconnected when it does not read
at all. What a reading holds is given back before the next one.
"""

import asyncio
import logging
from typing import NamedTuple

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.api.changes import BYTES_PER_STEP, ChangesPage, ChangesQuery, Piece
from kvactor.api.values import JSON
from kvactor.core.feed import REVISIONS_PER_READ
from kvactor.core.memory import SMALL, MemoryAccount
from kvactor.core.messages import Awaited, Changes
from kvactor.errors import InvalidRequest, KvactorError
from kvactor.settings import Settings
from kvactor.web.http import (
    ACCEPT,
    REVISION,
    Exchange,
    Response,
    Stream,
    header_list,
    query,
    revision_in,
)
from kvactor.web.limits import SubscriberLimit
from kvactor.web.negotiation import prefers
from kvactor.web.revision_cache import RevisionCache
from kvactor.web.routes import LAST_EVENT_ID, ResponseSpec, Route
from kvactor.web.steps import Turnstile, join
from kvactor.web.waits import Deadlines

log = logging.getLogger(__name__)

EVENTS = "text/event-stream"


class Part(NamedTuple):
    """Some revisions in a row, cut for a follower."""

    #: the newest revision when they were read
    newest: int
    #: the last of them, from which the follower continues
    since: int
    #: how many they are
    looked: int
    #: the numbers and the texts of those that the follower gets
    cuts: list[tuple[int, list[Piece]]]


class ChangeRoutes:
    """The handler of the feed."""

    def __init__(
        self,
        actor: StoreActor,
        settings: Settings,
        deadlines: Deadlines,
        account: MemoryAccount,
        subscribers: SubscriberLimit,
        turnstile: Turnstile,
    ) -> None:
        self._actor = actor
        self._settings = settings
        self._turnstile = turnstile
        self._cache = RevisionCache(account, self._turnstile)
        self._deadlines = deadlines
        self._subscribers = subscribers

    def routes(self) -> list[Route]:
        """Return the route."""
        return [
            Route(
                method="GET",
                path="/v1/changes",
                endpoint=self.changes,
                summary="The revisions after one: a page, a long poll, or a stream",
                headers=(LAST_EVENT_ID,),
                query=ChangesQuery,
                responses={
                    200: ResponseSpec(
                        "The revisions, in order; server-sent events if `Accept` asks for them",
                        {JSON: ChangesPage, EVENTS: bytes},
                    )
                },
                errors=(
                    errors.HistoryGone,
                    errors.RevisionInFuture,
                    errors.TooManySubscribers,
                    errors.RecordDamaged,
                ),
            )
        ]

    async def changes(self, exchange: Exchange) -> Response | None:
        """GET /v1/changes."""
        request = exchange.request
        asked = query(request, ChangesQuery)
        since = self._actor.revision if asked.since == "now" else asked.since
        prefix = asked.prefix.encode()
        resumed = request.headers.get("Last-Event-ID")
        last = None if resumed is None else revision_in(resumed)
        if resumed is not None and last is None:
            raise InvalidRequest("Last-Event-ID is not a revision.")
        if prefers(header_list(request, ACCEPT) or "", EVENTS, JSON):
            with self._subscribers.subscribed():
                await self._follow(exchange, since if last is None else last, prefix)
            return None
        if asked.wait:
            with self._subscribers.subscribed():
                return await self._page(exchange, asked, since, prefix)
        return await self._page(exchange, asked, since, prefix)

    async def _page(
        self, exchange: Exchange, asked: ChangesQuery, since: int, prefix: bytes
    ) -> Response:
        found: list[Piece] = []
        looked, newest = 0, self._actor.revision
        room = exchange.lease.share(self._settings.max_body_size, SMALL)
        while looked < asked.limit and room > 0:
            part = await self._read(exchange, since, asked.limit - looked, prefix)
            if not part.looked:
                break
            newest, since = part.newest, part.since
            looked += part.looked
            room -= _add(found, part)
        if asked.wait and not found:
            loop = asyncio.get_running_loop()
            end = loop.time() + asked.wait
            while not found:
                part = await self._read(exchange, since, asked.limit, prefix, end - loop.time())
                newest, since = part.newest, part.since
                _add(found, part)
                if not part.looked:
                    break
        whole = (b'{"revisions":[', *found[1:], b'],"since":%d}' % since)
        size = sum(map(len, whole))
        # What the response takes is counted before it is made.
        exchange.lease.acquire(size)
        large = size > BYTES_PER_STEP
        body = await self._turnstile.take(join(whole, BYTES_PER_STEP)) if large else b"".join(whole)
        return Response(max(newest, since), body)

    async def _read(
        self, exchange: Exchange, since: int, limit: int, prefix: bytes, wait: float | None = None
    ) -> Part:
        """Return the next revisions, cut. With `wait`, seconds, there is one at least that changes such
        a key, unless the wait has ended.

        What has been read is always cut and returned, however long that takes: no revision is passed
        over.
        """
        awaited = Awaited(prefix, since)
        try:
            try:
                if wait is None:
                    answer = await exchange.ask(Changes(since, limit))
                else:
                    async with self._deadlines.limit(wait):
                        answer = await exchange.ask(Changes(since, limit, True, awaited))
            except TimeoutError:
                return Part(awaited.since, awaited.since, 0, [])
            revisions = answer.result
            cuts = [cut async for cut in self._cache.cut(revisions, prefix)]
            since = revisions[-1].number if revisions else awaited.since
            return Part(answer.revision, since, len(revisions), cuts)
        finally:
            # The revisions are held no more, and the cache counts what is left of their text.
            exchange.lease.release()

    async def _follow(self, exchange: Exchange, since: int, prefix: bytes) -> None:
        loop = asyncio.get_running_loop()
        # Read before the stream begins, so that an error has a status of its own.
        part = await self._read(exchange, since, REVISIONS_PER_READ, prefix)
        headers = {
            "Content-Type": EVENTS,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            REVISION: str(part.newest),
        }
        since, text = part.since, _events(part) or [b":\n\n"]
        del part
        stream: Stream | None = None
        try:
            stream = await exchange.stream(headers)
            heartbeat_at = loop.time()
            while True:
                if text:
                    await stream.write(text)
                    # While the stream waits, it holds nothing.
                    text.clear()
                    heartbeat_at = loop.time() + self._settings.heartbeat
                part = await self._read(
                    exchange, since, REVISIONS_PER_READ, prefix, heartbeat_at - loop.time()
                )
                since = part.since
                if part.looked:
                    text = _events(part)
                elif self._deadlines.must_end:
                    return
                else:
                    # An event without data only sets the id from which the client resumes.
                    text = [b":\nid: %d\n\n" % since if prefix else b":\n\n"]
                del part
        except TimeoutError:
            # The server stops before this client has read its events: it resumes from there.
            if stream is not None:
                stream.abort()
        except (ConnectionError, KvactorError) as error:
            log.debug("a reader of the changes has ended at revision %d: %s", since, error)


def _add(found: list[Piece], part: Part) -> int:
    """Add revisions to a page, each behind a comma; return how many bytes they have."""
    before = len(found)
    for _, pieces in part.cuts:
        found += (b",", *pieces)
    return sum(map(len, found[before:]))


def _events(part: Part) -> list[Piece]:
    """Return revisions as server-sent events: small ones joined, large ones in shared pieces.

    If there are none, but more to read, an event without data, which sets the id to resume from.
    """
    small: list[Piece] = []
    found: list[Piece] = []
    for number, (first, *rest) in part.cuts:
        event = (b"id: %d\ndata: " % number + first, *rest, b"\n\n")
        if sum(map(len, event)) <= SMALL:
            small += event
        else:
            found += (b"".join(small), *event)
            small = []
    if not part.cuts and part.since < part.newest:
        small = [b"id: %d\n\n" % part.since]
    return [piece for piece in (*found, b"".join(small)) if piece]
