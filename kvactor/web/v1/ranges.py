"""Ranges of keys, in order: /v1/kv."""

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from aiohttp import web
from msgspec import Meta

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.core.keyspace import Page
from kvactor.core.messages import AUTOCOMMIT, Answer, Batch, Execute, TransactionRef
from kvactor.core.operations import DeleteRange, Range
from kvactor.errors import InvalidRequest, KvactorError
from kvactor.settings import Settings
from kvactor.web.answers import answer
from kvactor.web.requests import Room, once_of, query_of, single, within
from kvactor.web.routes import LINK, ONCE, WITHIN, WRITING, Route, always, said
from kvactor.web.v1.keys import Written
from kvactor.web.values import Item, encode, item

PLAIN = {"X-Content-Type-Options": "nosniff"}

#: Keys that the owner reads at a time: about half a millisecond.
SLICE = 200


class RangeQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Which keys."""

    prefix: Annotated[str, Meta(description="keys that begin with this")] = ""
    start: Annotated[str, Meta(description="keys from this one on")] = ""
    end: Annotated[str | None, Meta(description="keys before this one")] = None

    def bounds(self) -> tuple[bytes, bytes | None]:
        """Return the first key, and the one behind the last (None: to the end)."""
        start, end = bounds(self.prefix)
        if self.end is not None:
            end = self.end.encode() if end is None else min(end, self.end.encode())
        return max(start, self.start.encode()), end


class ScanQuery(RangeQuery, forbid_unknown_fields=True):
    """Which keys, and how many of them."""

    limit: Annotated[int, Meta(ge=1, description="keys in a page; max_scan_limit at most")] = 100
    cursor: Annotated[str | None, Meta(description="where the page before has ended")] = None
    reverse: Annotated[bool, Meta(description="the last key first")] = False
    values: Annotated[bool, Meta(description="false: keys without their values")] = True


class DeleteQuery(RangeQuery, forbid_unknown_fields=True):
    """Which keys to delete."""

    all: Annotated[bool, Meta(description="needed where nothing else says which")] = False


class Items(msgspec.Struct):
    """A page of a scan."""

    items: list[Item]
    cursor: Annotated[str | None, Meta(description="goes on behind this page; null: there is no more")]
    revision: Annotated[
        int,
        Meta(description="following the changes from here on misses nothing that is not in the page"),
    ]


def bounds(prefix: str) -> tuple[bytes, bytes | None]:
    """Return the first key with a prefix, and the one behind the last (None: to the end)."""
    start = prefix.encode()
    # No byte of UTF-8 is 255.
    return start, start[:-1] + bytes([start[-1] + 1]) if start else None


class RangeRoutes:
    """Handlers that parse, ask and encode."""

    def __init__(self, actor: StoreActor, settings: Settings, room: Room) -> None:
        self._room = room
        self._ask = actor.ask
        self._settings = settings

    def routes(self) -> list[Route]:
        """Return the routes."""
        scan = Route(
            method="GET",
            path="/v1/kv",
            handler=self.scan,
            summary="Read the keys of a range, in order",
            headers=(WITHIN,),
            query=ScanQuery,
            most={"limit": self._settings.max_scan_limit},
            answers={200: said(Items, "A page.", LINK, *always(PLAIN))},
            errors=(errors.RecordDamaged,),
        )
        return [
            scan,
            scan.head(),
            Route(
                method="DELETE",
                path="/v1/kv",
                handler=self.delete_range,
                summary="Remove the keys of a range, in one revision",
                headers=(WITHIN, ONCE),
                query=DeleteQuery,
                answers={200: said(Written)},
                errors=(errors.RangeTooLarge, *WRITING),
            ),
        ]

    async def scan(self, request: web.Request) -> web.Response:
        """GET /v1/kv."""
        query = query_of(request, ScanQuery)
        if query.limit > self._settings.max_scan_limit:
            raise InvalidRequest(f"limit is at most {self._settings.max_scan_limit}.")
        start, end = query.bounds()
        if query.cursor is not None:
            last = _place(query.cursor, reverse=query.reverse)
            if query.reverse:
                end = last if end is None else min(end, last)
            else:
                start = max(start, last + b"\0")
        found: list[tuple[bytes, bytes]] = []
        room, revision, more = self._room.left(self._settings.max_body_size), None, True
        where = within(request, AUTOCOMMIT)
        async for got in self._parts(
            Range(start, end, query.limit, query.reverse, query.values), where
        ):
            # The oldest part's revision: whoever goes on from there misses nothing.
            revision = got.revision if revision is None else revision
            found += got.result.items
            more = got.result.more
            room -= sum(len(record) for _, record in got.result.items)
            if room <= 0:
                break
        cursor = _cursor(found[-1][0], reverse=query.reverse) if more else None
        body = Items(
            [item(key, record, values=query.values) for key, record in found], cursor, revision or 0
        )
        headers = dict(PLAIN)
        if cursor is not None:
            following = {**request.query, "cursor": cursor}
            headers["Link"] = f'</v1/kv?{urlencode(following)}>; rel="next"'
        return answer(revision or 0, encode(body), headers=headers)

    async def _parts(self, asked: Range, transaction: TransactionRef) -> AsyncIterator[Answer[Page]]:
        """Yield what a message asks for in parts, so that nobody waits long for the owner."""
        start, end, left, more = asked.start, asked.end, asked.limit, True
        most = min(SLICE, self._settings.max_scan_limit)
        while more and left:
            part = msgspec.structs.replace(asked, start=start, end=end, limit=min(most, left))
            got = await self._ask(Execute(part, transaction))
            yield got
            more = got.result.more
            left -= len(got.result.items)
            if more:
                last = got.result.items[-1][0]
                start, end = (start, last) if asked.reverse else (last + b"\0", end)

    async def delete_range(self, request: web.Request) -> web.Response:
        """DELETE /v1/kv."""
        query = query_of(request, DeleteQuery)
        if not (query.all or query.prefix or query.start or query.end is not None):
            raise InvalidRequest("Say which keys: prefix, start, end, or all=true.")
        start, end = query.bounds()
        where = within(request, AUTOCOMMIT)
        asked = Batch((DeleteRange(start, end),), (), where, once_of(request))
        try:
            deleted = await self._ask(asked)
        except KvactorError as error:
            raise single(error)  # noqa: B904 (it is the same one)
        (there,) = deleted.result.results
        body = Written(deleted.result.revision or None, there if isinstance(there, int) else 0)
        return answer(deleted.revision, encode(body))


def _cursor(key: bytes, *, reverse: bool) -> str:
    return base64.urlsafe_b64encode((b"<" if reverse else b">") + key).decode().rstrip("=")


def _place(cursor: str, *, reverse: bool) -> bytes:
    try:
        place = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        place = b""
    if place[:1] != (b"<" if reverse else b">"):
        raise InvalidRequest("The cursor is not one that a scan in this direction has given.")
    return place[1:]
