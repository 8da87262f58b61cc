"""The changes feed: GET /v1/changes, as pages, as a long poll, or as server-sent events.

The rule: a follower asks for the next revisions when it has room for them. So a slow reader holds
nothing but its own connection, and is disconnected when it does not read at all.
"""

import logging
from collections.abc import Sequence

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.api.changes import ChangesPage, ChangesQuery, Event, event, events
from kvactor.api.values import JSON, encode
from kvactor.core.feed import SLICE
from kvactor.core.memory import SMALL
from kvactor.core.messages import Changes
from kvactor.core.records import Revision
from kvactor.errors import InvalidRequest, KvactorError
from kvactor.settings import Settings
from kvactor.web.http import REVISION, Exchange, Response, Stream, json_response, query, revision_in
from kvactor.web.limits import Deadlines, SubscriberLimit
from kvactor.web.routes import LAST_EVENT_ID, ResponseSpec, Route

log = logging.getLogger(__name__)

EVENTS = "text/event-stream"

#: Events that are kept encoded, for all followers: how many, and how many bytes of them.
CACHE = 1024
CACHE_SIZE = 8 * 1024 * 1024


class ChangeRoutes:
    """The handler of the feed."""

    def __init__(
        self,
        actor: StoreActor,
        settings: Settings,
        deadlines: Deadlines,
        subscribers: SubscriberLimit,
    ) -> None:
        self._actor = actor
        self._settings = settings
        self._encoded: dict[int, bytes] = {}
        self._encoded_size = 0
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
        if EVENTS in request.headers.get("Accept", ""):
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
        found: list[Event] = []
        looked, revision = 0, self._actor.revision
        room = exchange.lease.share(self._settings.max_body_size, SMALL)
        while looked < asked.limit and room > 0:
            answer = await exchange.ask(Changes(since, asked.limit - looked))
            if not answer.result:
                break
            revision = answer.revision
            looked += len(answer.result)
            room -= sum(len(record or b"") for one in answer.result for _, record in one.changes)
            since = answer.result[-1].number
            found += events(answer.result, prefix)
        if asked.wait and not found:
            try:
                async with self._deadlines.limit(asked.wait):
                    while not found:
                        answer = await exchange.ask(Changes(since, asked.limit, wait=True))
                        revision = answer.revision
                        if not answer.result:
                            break
                        since = answer.result[-1].number
                        found += events(answer.result, prefix)
            except TimeoutError:
                pass
        return json_response(max(revision, since), ChangesPage(found, since))

    async def _follow(self, exchange: Exchange, since: int, prefix: bytes) -> None:
        # Asked before the stream begins, so that an error has a status of its own.
        answer = await exchange.ask(Changes(since, SLICE))
        headers = {
            "Content-Type": EVENTS,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            REVISION: str(answer.revision),
        }
        text = self._encode(answer.result, prefix) or b":\n\n"
        stream: Stream | None = None
        try:
            stream = await exchange.stream(headers)
            while True:
                if answer.result:
                    since = answer.result[-1].number
                if text:
                    await stream.write(text)
                try:
                    async with self._deadlines.limit(self._settings.heartbeat):
                        answer = await exchange.ask(Changes(since, SLICE, wait=True))
                except TimeoutError:
                    if self._deadlines.stopping:
                        return
                    # An event without data only sets the id from which the client resumes.
                    text = b":\nid: %d\n\n" % since if prefix else b":\n\n"
                    continue
                if not answer.result:
                    # The server stops.
                    return
                text = self._encode(answer.result, prefix)
        except TimeoutError:
            # The server stops before this client has read its events: it resumes from there.
            if stream is not None:
                stream.abort()
        except (ConnectionError, KvactorError) as error:
            log.debug("a reader of the changes has ended at revision %d: %s", since, error)

    def _encode(self, revisions: Sequence[Revision], prefix: bytes) -> bytes:
        if prefix:
            return b"".join(_encode(event) for event in events(revisions, prefix))
        encoded = self._encoded
        found: list[bytes] = []
        for revision in revisions:
            text = encoded.get(revision.number)
            if text is None:
                text = encoded[revision.number] = _encode(event(revision))
                self._encoded_size += len(text)
                while len(encoded) > CACHE or self._encoded_size > CACHE_SIZE:
                    self._encoded_size -= len(encoded.pop(next(iter(encoded))))
            found.append(text)
        return b"".join(found)


#: Lines may end between the tokens of a stored JSON value, but not within an event's data.
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def _encode(event: Event) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (event.revision, encode(event).translate(_ONE_LINE))
