"""Ranges of keys, in order: /v1/kv."""

import base64
import binascii
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import msgspec

from kvactor import errors
from kvactor.api.keys import DeleteQuery, Items, ScanQuery, Written, bounds
from kvactor.api.values import encode, item
from kvactor.core.context import Page
from kvactor.core.memory import SMALL
from kvactor.core.messages import AUTOCOMMIT, Answer, Batch, BatchResponse, Execute, TransactionRef
from kvactor.core.operations import DeleteRange, Range
from kvactor.errors import InvalidRequest, Overloaded
from kvactor.settings import Settings
from kvactor.web import http, single
from kvactor.web.http import (
    Exchange,
    Request,
    Response,
    idempotency_key,
    json_response,
    query,
    query_pairs,
    transaction,
)
from kvactor.web.routes import (
    IDEMPOTENCY_KEY,
    LINK,
    TRANSACTION,
    WRITE_ERRORS,
    Endpoint,
    Route,
    constant_headers,
    json_spec,
)
from kvactor.web.steps import encoded

CONSTANT_HEADERS = {"X-Content-Type-Options": "nosniff", "Vary": str(http.TRANSACTION)}

#: Keys that the owner reads at a time: about half a millisecond.
SLICE = 200


class RangeRoutes:
    """Handlers that read a range in several messages."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def routes(self) -> list[Route]:
        """Return the routes."""
        scan = Route(
            method="GET",
            path="/v1/kv",
            endpoint=self.scan,
            summary="Read the keys of a range, in order",
            headers=(TRANSACTION,),
            query=ScanQuery,
            maximums={"limit": self._settings.max_scan_limit},
            responses={200: json_spec(Items, "A page", LINK, *constant_headers(CONSTANT_HEADERS))},
            errors=(errors.RecordDamaged,),
        )
        return [
            scan,
            scan.head(),
            Route(
                method="DELETE",
                path="/v1/kv",
                endpoint=Endpoint(parse_delete, encode_delete, single.explain),
                summary="Delete the keys of a range, in one revision",
                headers=(TRANSACTION, IDEMPOTENCY_KEY),
                query=DeleteQuery,
                responses={200: json_spec(Written)},
                errors=(errors.RangeTooLarge, *WRITE_ERRORS),
            ),
        ]

    async def scan(self, exchange: Exchange) -> Response:
        """GET /v1/kv."""
        request = exchange.request
        asked = query(request, ScanQuery)
        if asked.limit > self._settings.max_scan_limit:
            raise InvalidRequest(f"limit is at most {self._settings.max_scan_limit}.")
        start, end = bounds(asked.prefix, asked.start, asked.end)
        if asked.cursor is not None:
            position = _position(asked.cursor, reverse=asked.reverse)
            if asked.reverse:
                end = position if end is None else min(end, position)
            else:
                start = max(start, position + b"\0")
        found: list[tuple[bytes, bytes]] = []
        room = exchange.lease.share(self._settings.max_body_size, SMALL)
        first: Answer[Page] | None = None
        last: bytes | None = None
        work = self._settings.max_request_work
        where = transaction(request, AUTOCOMMIT)
        async for part in self._parts(
            exchange, Range(start, end, asked.limit, asked.reverse, asked.values), where
        ):
            # The page has the revision of its oldest part: the changes after it miss nothing.
            first = first or part
            found += part.result.items
            last = part.result.last
            room -= sum(len(record) for _, record in part.result.items)
            work -= part.result.work
            if room <= 0 or work <= 0:
                break
        cursor = None if last is None else _cursor(last, reverse=asked.reverse)
        headers = dict(CONSTANT_HEADERS)
        if cursor is not None:
            following = {**query_pairs(request), "cursor": cursor}
            headers["Link"] = f'</v1/kv?{urlencode(following)}>; rel="next"'
        revision, time = (first.revision, first.time) if first else (0, 0)
        items = await exchange.take(encoded(item(*one, values=asked.values) for one in found))
        body = b'{"items":[%b],"cursor":%b,"revision":%d}' % (items, encode(cursor), revision)
        return Response(revision, body, headers=headers, time=time)

    async def _parts(
        self, exchange: Exchange, asked: Range, where: TransactionRef
    ) -> AsyncIterator[Answer[Page]]:
        """Yield the answers to a range in parts, so that no other request waits long for the owner.

        Raises `Overloaded` before the first part only.
        """
        start, end, left, more = asked.start, asked.end, asked.limit, True
        maximum = min(SLICE, self._settings.max_scan_limit)
        while more and left:
            part = msgspec.structs.replace(asked, start=start, end=end, limit=min(maximum, left))
            try:
                answer = await exchange.ask(Execute(part, where))
            except Overloaded:
                if left == asked.limit:
                    raise
                return
            yield answer
            left -= len(answer.result.items)
            last = answer.result.last
            more = last is not None
            if last is not None:
                start, end = (start, last) if asked.reverse else (last + b"\0", end)


def parse_delete(request: Request) -> Batch:
    """DELETE /v1/kv."""
    asked = query(request, DeleteQuery)
    if not (asked.all or asked.prefix or asked.start or asked.end is not None):
        raise InvalidRequest("Say which keys: prefix, start, end, or all=true.")
    operation = DeleteRange(*bounds(asked.prefix, asked.start, asked.end))
    return single.delete_range(operation, transaction(request, AUTOCOMMIT), idempotency_key(request))


def encode_delete(request: Request, message: Batch, answer: Answer[BatchResponse]) -> Response:
    """The revision, and how many keys it deleted."""
    revision, deleted = single.outcome(message, answer)
    return json_response(answer.revision, Written(revision, deleted))


def _cursor(key: bytes, *, reverse: bool) -> str:
    return base64.urlsafe_b64encode((b"<" if reverse else b">") + key).decode().rstrip("=")


def _position(cursor: str, *, reverse: bool) -> bytes:
    try:
        position = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        position = b""
    if position[:1] != (b"<" if reverse else b">"):
        raise InvalidRequest("The cursor is not one that a scan in this direction has given.")
    return position[1:]
