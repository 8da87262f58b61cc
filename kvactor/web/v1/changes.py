"""The changes feed: GET /v1/changes, as pages, as a long poll, or as server-sent events.

The rule: whoever follows asks for the next revisions when it has room for them. So a slow reader
holds nothing but its own connection, and is cut off when it does not read at all.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.core.messages import Changes
from kvactor.core.records import HIDDEN, Revision
from kvactor.errors import InvalidRequest, KvactorError, TooManySubscribers
from kvactor.settings import Settings
from kvactor.web.answers import REVISION, answer
from kvactor.web.connections import PIECE
from kvactor.web.requests import Patience, Room, query_of, revision_of
from kvactor.web.routes import LAST_EVENT_ID, Reply, Route
from kvactor.web.values import JSON, Item, any_of, encode, item, moment

log = logging.getLogger(__name__)

EVENTS = "text/event-stream"

#: Events that are kept encoded, for all who follow: how many, and how many bytes of them.
CACHE = 1024
CACHE_SIZE = 8 * 1024 * 1024


class ChangesQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Which changes."""

    since: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["now"],
        Meta(description="those after this revision; 0: from the first; now: those to come"),
    ] = 0
    prefix: Annotated[str, Meta(description="of keys that begin with this")] = ""
    limit: Annotated[int, Meta(ge=1, le=1000, description="revisions to look at for a page")] = 100
    wait: Annotated[
        float, Meta(ge=0, le=300, description="seconds to wait if there are none (a long poll)")
    ] = 0


class Deleted(msgspec.Struct):
    """A key that is gone: deleted, or expired."""

    key: str
    deleted: bool = True


class Event(msgspec.Struct):
    """One revision, whole."""

    revision: int
    time: Annotated[str, Meta(description="when it was made: RFC 3339, UTC")]
    changes: Annotated[list[Any], Meta(extra_json_schema=any_of(Item, Deleted))]


class ChangesPage(msgspec.Struct):
    """What GET /v1/changes answers."""

    revisions: list[Event]
    since: Annotated[int, Meta(description="go on from here")]


class ChangeRoutes:
    """Handlers that parse, ask and encode."""

    def __init__(self, actor: StoreActor, settings: Settings, patience: Patience, room: Room) -> None:
        self._actor = actor
        self._settings = settings
        self._metrics = actor.metrics
        self._encoded: dict[int, bytes] = {}
        self._encoded_size = 0
        self._patience = patience
        self._room = room

    def routes(self) -> list[Route]:
        """Return the route."""
        return [
            Route(
                method="GET",
                path="/v1/changes",
                handler=self.changes,
                summary="The revisions after one: a page, a long poll, or a stream",
                headers=(LAST_EVENT_ID,),
                query=ChangesQuery,
                answers={
                    200: Reply(
                        "The revisions, in order; server-sent events where `Accept` asks for those.",
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

    async def changes(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/changes."""
        query = query_of(request, ChangesQuery)
        since = self._actor.revision if query.since == "now" else query.since
        prefix = query.prefix.encode()
        resumed = request.headers.get("Last-Event-ID")
        last = None if resumed is None else revision_of(resumed)
        if resumed is not None and last is None:
            raise InvalidRequest("Last-Event-ID is not a revision.")
        if EVENTS in request.headers.get("Accept", ""):
            with self._subscribed():
                return await self._follow(request, since if last is None else last, prefix)
        if query.wait:
            with self._subscribed():
                return await self._page(query, since, prefix)
        return await self._page(query, since, prefix)

    @contextmanager
    def _subscribed(self) -> Iterator[None]:
        limit = self._settings.max_subscribers
        if self._metrics.subscribers >= limit:
            raise TooManySubscribers(f"{limit} requests follow the changes already. Try again later.")
        self._metrics.subscribers += 1
        try:
            yield
        finally:
            self._metrics.subscribers -= 1

    async def _page(self, query: ChangesQuery, since: int, prefix: bytes) -> web.Response:
        events: list[Event] = []
        looked, revision, room = 0, self._actor.revision, self._room.left(self._settings.max_body_size)
        while looked < query.limit and room > 0:
            got = await self._actor.ask(Changes(since, query.limit - looked))
            if not got.result:
                break
            revision = got.revision
            looked += len(got.result)
            room -= sum(len(record or b"") for one in got.result for _, record in one.changes)
            since = got.result[-1].number
            events += _events(got.result, prefix)
        if query.wait and not events:
            try:
                async with self._patience.limit(query.wait):
                    while not events:
                        got = await self._actor.ask(Changes(since, query.limit, wait=True))
                        revision = got.revision
                        if not got.result:
                            break
                        since = got.result[-1].number
                        events += _events(got.result, prefix)
            except TimeoutError:
                pass
        return answer(max(revision, since), encode(ChangesPage(events, since)))

    async def _follow(self, request: web.Request, since: int, prefix: bytes) -> web.StreamResponse:
        # Asked before the stream begins, so that what is wrong gets a status of its own.
        got = await self._actor.ask(Changes(since, self._settings.max_batch_size))
        headers = {
            "Content-Type": EVENTS,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            REVISION: str(got.revision),
        }
        stream = web.StreamResponse(headers=headers)
        text = self._encode(got.result, prefix) or b":\n\n"
        try:
            await stream.prepare(request)
            while True:
                if got.result:
                    since = got.result[-1].number
                if text:
                    await self._write(stream, text)
                try:
                    async with self._patience.limit(self._settings.heartbeat):
                        got = await self._actor.ask(Changes(since, 1000, wait=True))
                except TimeoutError:
                    if self._patience.stopping:
                        return stream
                    # The id of an event without data only moves on where to resume.
                    text = b":\nid: %d\n\n" % since if prefix else b":\n\n"
                    continue
                if not got.result:
                    # The server stops.
                    return stream
                text = self._encode(got.result, prefix)
        except TimeoutError:
            # The server stops, and this one has not read what was there: it resumes from that.
            if request.transport is not None:
                request.transport.abort()
        except (ConnectionError, KvactorError) as error:
            log.debug("a reader of the changes has ended at revision %d: %s", since, error)
        return stream

    async def _write(self, stream: web.StreamResponse, text: bytes) -> None:
        """Write in pieces, each when the last one is taken, or the connection is cut off. Raises
        `TimeoutError` when the server stops, `Overloaded`, and `ConnectionError`.
        """
        self._room.take(len(text))
        async with self._patience.limit(None):
            for start in range(0, len(text), PIECE):
                await stream.write(text[start : start + PIECE])
        self._room.give_back()

    def _encode(self, revisions: Sequence[Revision], prefix: bytes) -> bytes:
        if prefix:
            return b"".join(_encode(event) for event in _events(revisions, prefix))
        encoded = self._encoded
        events: list[bytes] = []
        for revision in revisions:
            event = encoded.get(revision.number)
            if event is None:
                event = encoded[revision.number] = _encode(_event(revision, b""))
                self._encoded_size += len(event)
                while len(encoded) > CACHE or self._encoded_size > CACHE_SIZE:
                    self._encoded_size -= len(encoded.pop(next(iter(encoded))))
            events.append(event)
        return b"".join(events)


#: Lines may end between the tokens of a stored JSON value, but not within an event's data.
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def _encode(event: Event) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (event.revision, encode(event).translate(_ONE_LINE))


def _event(revision: Revision, prefix: bytes) -> Event:
    return Event(
        revision.number,
        moment(revision.time),
        [
            Deleted(key.decode()) if record is None else item(key, record)
            for key, record in revision.changes
            if key.startswith(prefix) and not key.startswith(HIDDEN)
        ],
    )


def _events(revisions: Sequence[Revision], prefix: bytes) -> list[Event]:
    events = (_event(revision, prefix) for revision in revisions)
    return [event for event in events if event.changes or not prefix]
