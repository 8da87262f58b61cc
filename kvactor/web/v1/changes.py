"""The changes feed: GET /v1/changes, as pages, as a long poll, or as server-sent events.

The rule: a follower asks for the next revisions when it has room for them. So a slow reader holds
nothing but its own connection, and is disconnected when it does not read at all.
"""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Sequence

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.api.changes import (
    CHANGES_PER_STEP,
    ChangesPage,
    ChangesQuery,
    EncodedRevision,
    Piece,
)
from kvactor.api.values import JSON
from kvactor.core.feed import SLICE
from kvactor.core.memory import SMALL, Lease, MemoryAccount
from kvactor.core.messages import Changes
from kvactor.core.records import Revision
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
from kvactor.web.routes import LAST_EVENT_ID, ResponseSpec, Route
from kvactor.web.steps import in_steps
from kvactor.web.waits import Deadlines

log = logging.getLogger(__name__)

EVENTS = "text/event-stream"

#: Revisions that are kept encoded, for all followers: how many, and how many bytes of them.
CACHE = 1024
CACHE_SIZE = 8 * 1024 * 1024


class ChangeRoutes:
    """The handler of the feed."""

    def __init__(
        self,
        actor: StoreActor,
        settings: Settings,
        deadlines: Deadlines,
        account: MemoryAccount,
        subscribers: SubscriberLimit,
    ) -> None:
        self._actor = actor
        self._settings = settings
        self._encoder = _Encoder(account)
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
        looked, revision = 0, self._actor.revision
        room = exchange.lease.share(self._settings.max_body_size, SMALL)
        while looked < asked.limit and room > 0:
            answer = await exchange.ask(Changes(since, asked.limit - looked))
            if not answer.result:
                break
            revision = answer.revision
            looked += len(answer.result)
            since = answer.result[-1].number
            room -= await self._add(found, answer.result, prefix)
        if asked.wait and not found:
            try:
                async with self._deadlines.limit(asked.wait):
                    while not found:
                        answer = await exchange.ask(Changes(since, asked.limit, wait=True))
                        revision = answer.revision
                        if not answer.result:
                            break
                        since = answer.result[-1].number
                        await self._add(found, answer.result, prefix)
            except TimeoutError:
                pass
        # What the response takes is counted before it is made.
        exchange.lease.acquire(sum(map(len, found)))
        body = b'{"revisions":[%b],"since":%d}' % (b"".join(found[1:]), since)
        return Response(max(revision, since), body)

    async def _add(self, found: list[Piece], revisions: Sequence[Revision], prefix: bytes) -> int:
        """Add revisions to a page, each behind a comma; return how many bytes they have."""
        before = len(found)
        async for _, pieces in self._encoder.cut(revisions, prefix):
            found += (b",", *pieces)
        return sum(map(len, found[before:]))

    async def _follow(self, exchange: Exchange, since: int, prefix: bytes) -> None:
        # Asked before the stream begins, so that an error has a status of its own.
        answer = await exchange.ask(Changes(since, SLICE))
        headers = {
            "Content-Type": EVENTS,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            REVISION: str(answer.revision),
        }
        text = await self._events(answer.result, prefix) or [b":\n\n"]
        stream: Stream | None = None
        try:
            stream = await exchange.stream(headers)
            while True:
                if answer.result:
                    since = answer.result[-1].number
                for piece in text:
                    await stream.write(piece)
                try:
                    async with self._deadlines.limit(self._settings.heartbeat):
                        answer = await exchange.ask(Changes(since, SLICE, wait=True))
                except TimeoutError:
                    if self._deadlines.must_end:
                        return
                    # An event without data only sets the id from which the client resumes.
                    text = [b":\nid: %d\n\n" % since if prefix else b":\n\n"]
                    continue
                if not answer.result:
                    # The server stops.
                    return
                text = await self._events(answer.result, prefix)
        except TimeoutError:
            # The server stops before this client has read its events: it resumes from there.
            if stream is not None:
                stream.abort()
        except (ConnectionError, KvactorError) as error:
            log.debug("a reader of the changes has ended at revision %d: %s", since, error)

    async def _events(self, revisions: Sequence[Revision], prefix: bytes) -> list[Piece]:
        """Return revisions as server-sent events: small ones joined, large ones in shared pieces."""
        small: list[Piece] = []
        found: list[Piece] = []
        async for number, pieces in self._encoder.cut(revisions, prefix):
            first, *rest = pieces
            event = (b"id: %d\ndata: " % number + first, *rest, b"\n\n")
            if sum(map(len, event)) <= SMALL:
                small += event
            else:
                found += (b"".join(small), *event)
                small = []
        return [piece for piece in (*found, b"".join(small)) if piece]


class _Encoder:
    """Encodes each revision once for all followers, in steps between which others are served.

    The last ones are kept: `CACHE` of them at most, and `CACHE_SIZE` bytes, or one that is larger. One
    that is not kept any more counts in the account of memory as long as a follower uses it.
    """

    def __init__(self, account: MemoryAccount) -> None:
        self._account = account
        self._encoded: dict[int, EncodedRevision] = {}
        self._size = 0
        self._encoding: dict[int, asyncio.Future[EncodedRevision]] = {}

    async def cut(
        self, revisions: Sequence[Revision], prefix: bytes
    ) -> AsyncIterator[tuple[int, list[Piece]]]:
        """Yield the number and the text of revisions; with a prefix, of those that change such keys.

        Raises `Overloaded` if there is no memory to encode one.
        """
        for revision in revisions:
            encoded = self._encoded.get(revision.number) or await self._encode(revision)
            if pieces := encoded.cut(prefix):
                yield revision.number, pieces

    async def _encode(self, revision: Revision) -> EncodedRevision:
        if len(revision.changes) < CHANGES_PER_STEP:
            return self._keep(revision.number, await self._take_steps(revision))
        task = self._encoding.get(revision.number)
        if task is None:
            task = asyncio.ensure_future(self._take_steps(revision))
            self._encoding[revision.number] = task
            task.add_done_callback(lambda done: self._encoded_now(revision.number, done))
        return await asyncio.shield(task)

    async def _take_steps(self, revision: Revision) -> EncodedRevision:
        lease = Lease(self._account, self._account.nobody)
        size = sum(len(key) + len(record or b"") for key, record in revision.changes)
        if size > SMALL:
            lease.acquire(size)
        try:
            return await in_steps(EncodedRevision.steps(revision))
        finally:
            lease.close()

    def _encoded_now(self, number: int, task: "asyncio.Future[EncodedRevision]") -> None:
        del self._encoding[number]
        if not task.cancelled() and task.exception() is None:
            self._keep(number, task.result())

    def _keep(self, number: int, one: EncodedRevision) -> EncodedRevision:
        encoded = self._encoded
        encoded[number] = one
        self._size += one.size
        while len(encoded) > 1 and (len(encoded) > CACHE or self._size > CACHE_SIZE):
            self._drop(encoded.pop(next(iter(encoded))))
        return one

    def _drop(self, one: EncodedRevision) -> None:
        self._size -= one.size
        if one.size > SMALL:
            # Until no follower uses it.
            lease = Lease(self._account, self._account.nobody)
            lease.acquire(one.size, refuse=False)
            weakref.finalize(one, lease.close)
