"""Keys as resources: /v1/kv/{key}."""

from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.core import records
from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.messages import (
    AUTOCOMMIT,
    Batch,
    BatchResponse,
    Check,
    Execute,
    Message,
    Precondition,
    Presence,
    TransactionRef,
)
from kvactor.core.operations import Delete, Get, Set
from kvactor.core.records import NEVER
from kvactor.errors import InvalidRequest
from kvactor.settings import MAX_SECONDS
from kvactor.web.answers import answer
from kvactor.web.requests import (
    Bodies,
    key_in_path,
    missing,
    once_of,
    query_of,
    revision_of,
    single,
    within,
)
from kvactor.web.routes import (
    ETAG,
    EXPIRES_AT,
    IF_ABSENT,
    IF_CHANGED,
    IF_MATCH,
    NEW_TAG,
    ONCE,
    WITHIN,
    WRITING,
    Body,
    Reply,
    Route,
    always,
    said,
)
from kvactor.web.values import BINARY, JSON, checked_type, encode, expiry

#: What keeps a stored page from running as this origin, and caches from keeping what has changed.
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

_PREFIX = "/v1/kv/"


class PutQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The query of PUT."""

    ttl: (
        Annotated[float, Meta(gt=0, le=MAX_SECONDS, description="seconds until the key ends by itself")]
        | None
    ) = None


class Written(msgspec.Struct):
    """What PUT and DELETE /v1/kv answer."""

    revision: Annotated[int | None, Meta(description="that was made; null within a transaction")]
    deleted: Annotated[int | msgspec.UnsetType, Meta(description="how many keys")] = msgspec.UNSET


def tag(revision: int) -> str:
    """Return the entity tag of a record that `revision` wrote."""
    return f'"{revision}"'


def _revisions(tags: str) -> tuple[int, ...]:
    """Return the revisions in a list of entity tags. Those that are not ours stand for nothing."""
    bare = (one.strip().removeprefix('"').removesuffix('"') for one in tags.split(","))
    return tuple(one for one in map(revision_of, bare) if one is not None)


def expected_of(request: web.Request) -> Precondition | None:
    """Return what a write expects of its key. Raises `InvalidRequest`."""
    match, none_match = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if none_match is not None:
        if none_match.strip() != "*" or match is not None:
            raise InvalidRequest("A write takes If-Match, or If-None-Match: *.")
        return Presence.ABSENT
    if match is None:
        return None
    return Presence.PRESENT if match.strip() == "*" else _revisions(match)


class KeyRoutes:
    """Handlers that parse, ask and encode."""

    def __init__(self, actor: StoreActor, bodies: Bodies) -> None:
        self._ask = actor.ask
        self._body_of = bodies.read

    def routes(self) -> list[Route]:
        """Return the routes."""
        path = _PREFIX + "{key:(?s:.+)}"
        get = Route(
            method="GET",
            path=path,
            handler=self.get,
            summary="Read a key",
            headers=(WITHIN, IF_CHANGED),
            answers={
                200: Reply(
                    "The value, with the content type that it was stored with.",
                    {"*/*": bytes},
                    (ETAG, EXPIRES_AT, *always(GUARDS)),
                ),
                304: Reply("It is still that.", headers=(ETAG, EXPIRES_AT, *always(GUARDS))),
            },
            errors=(errors.KeyNotFound, errors.RecordDamaged),
        )
        return [
            Route(
                method="PUT",
                path=path,
                handler=self.put,
                summary="Give a key a value: the body, kept with its content type",
                headers=(WITHIN, ONCE, IF_MATCH, IF_ABSENT),
                query=PutQuery,
                body=Body({BINARY: bytes, JSON: Any, "text/plain": str}),
                answers={
                    200: said(Written, "It was there.", NEW_TAG),
                    201: said(Written, "It is new.", NEW_TAG),
                },
                errors=(errors.ValueTooLarge, *WRITING),
            ),
            get,
            get.head(),
            Route(
                method="DELETE",
                path=path,
                handler=self.delete,
                summary="Remove a key",
                headers=(WITHIN, ONCE, IF_MATCH, IF_ABSENT),
                answers={204: Reply("It is gone.")},
                errors=(errors.KeyNotFound, *WRITING),
            ),
        ]

    async def put(self, request: web.Request) -> web.Response:
        """PUT /v1/kv/{key}."""
        key, ttl = key_in_path(request, _PREFIX), query_of(request, PutQuery).ttl
        value = await self._body_of(request)
        content_type = checked_type(request.headers.get("Content-Type", BINARY), value)
        expected, transaction = expected_of(request), within(request, AUTOCOMMIT)
        lifetime = None if ttl is None else max(1, int(ttl * 1000))
        report = expected is not None or transaction is AUTOCOMMIT
        operation = Set(key, value, content_type, lifetime, report)
        asked = write(operation, transaction, expected, once_of(request, value))
        try:
            put = await self._ask(asked)
        except errors.KvactorError as error:
            raise single(error)  # noqa: B904 (it is the same one)
        if isinstance(put.result, BatchResponse):
            revision, created = put.result.revision, put.result.results[0]
        else:
            revision, created = (put.revision if transaction is AUTOCOMMIT else 0), put.result
        headers = {"ETag": tag(revision)} if revision else {}
        status = 201 if created else 200
        return answer(put.revision, encode(Written(revision or None)), status, headers=headers)

    async def get(self, request: web.Request) -> web.Response:
        """GET and HEAD /v1/kv/{key}."""
        key = key_in_path(request, _PREFIX)
        got = await self._ask(Execute(Get(key), within(request, AUTOCOMMIT)))
        if got.result is None:
            raise missing(got)
        record = records.decode(got.result)
        headers = {"ETag": tag(record.revision), **GUARDS}
        if record.expires_at != NEVER:
            headers["Kvactor-Expires-At"] = expiry(record.expires_at) or ""
        known = request.headers.get("If-None-Match")
        if known is not None and (
            known.strip() == "*" or record.revision in _revisions(_strong(known))
        ):
            return answer(got.revision, b"", 304, record.content_type, headers)
        return answer(got.revision, record.value, 200, record.content_type, headers)

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /v1/kv/{key}."""
        key = key_in_path(request, _PREFIX)
        operation = Delete(key, must_exist=True)
        transaction, expected = within(request, AUTOCOMMIT), expected_of(request)
        try:
            deleted = await self._ask(write(operation, transaction, expected, once_of(request)))
        except errors.KvactorError as error:
            raise single(error)  # noqa: B904 (it is the same one)
        return answer(deleted.revision, b"", 204)


def write(
    operation: Set | Delete,
    transaction: TransactionRef,
    expected: Precondition | None,
    once: IdempotencyKey | None,
) -> Message[Any]:
    """Return the message of one write: with a precondition or an idempotency key, a batch of one."""
    if expected is None and once is None:
        return Execute(operation, transaction)
    checks = () if expected is None else (Check(operation.key, expected),)
    return Batch((operation,), checks, transaction, once)


def _strong(tags: str) -> str:
    return tags.replace("W/", "")
