"""Keys as resources: /v1/kv/{key}."""

from typing import Any

from kvactor import errors
from kvactor.api.keys import PutQuery, Written
from kvactor.api.values import BINARY, JSON, checked_type, expiry
from kvactor.core import messages, records
from kvactor.core.messages import AUTOCOMMIT, Answer, Delete, Get, Set
from kvactor.core.records import NEVER
from kvactor.web.http import (
    CONTENT_TYPE,
    Request,
    Response,
    idempotency_key,
    json_response,
    key_in_path,
    not_modified,
    precondition,
    query,
    transaction,
)
from kvactor.web.routes import (
    ETAG,
    EXPIRES_AT,
    IDEMPOTENCY_KEY,
    IF_ABSENT,
    IF_CHANGED,
    IF_MATCH,
    NEW_TAG,
    TRANSACTION,
    WRITE_ERRORS,
    Body,
    Endpoint,
    ResponseSpec,
    Route,
    always,
    json_spec,
)

#: They keep a stored page from running as this origin, and caches from keeping a value.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

_PREFIX = "/v1/kv/"


def tag(revision: int) -> str:
    """Return the entity tag of a record that `revision` wrote."""
    return f'"{revision}"'


def parse_put(request: Request) -> Set:
    """PUT /v1/kv/{key}."""
    key, ttl = key_in_path(request, _PREFIX), query(request, PutQuery).ttl
    return Set(
        key,
        request.body,
        checked_type(request.headers.get(CONTENT_TYPE, BINARY), request.body),
        transaction(request, AUTOCOMMIT),
        None if ttl is None else max(1, int(ttl * 1000)),
        precondition(request),
        idempotency_key(request),
    )


def encode_put(request: Request, message: Set, answer: Answer[messages.Written]) -> Response:
    """The revision, once there is one."""
    revision = answer.result.revision
    headers = {"ETag": tag(revision)} if revision else {}
    status = 201 if answer.result.created else 200
    return json_response(answer.revision, Written(revision or None), status, headers)


def parse_get(request: Request) -> Get:
    """GET and HEAD /v1/kv/{key}."""
    return Get(key_in_path(request, _PREFIX), transaction(request, AUTOCOMMIT))


def encode_get(request: Request, message: Get, answer: Answer[bytes]) -> Response:
    """The value; or 304 if the client has it."""
    record = records.decode(answer.result)
    headers = {"ETag": tag(record.revision), **SECURITY_HEADERS}
    if record.expires_at != NEVER:
        headers["Kvactor-Expires-At"] = expiry(record.expires_at) or ""
    if not_modified(request, record.revision):
        return Response(answer.revision, b"", 304, record.content_type, headers)
    return Response(answer.revision, record.value, 200, record.content_type, headers)


def parse_delete(request: Request) -> Delete:
    """DELETE /v1/kv/{key}."""
    key, where = key_in_path(request, _PREFIX), transaction(request, AUTOCOMMIT)
    return Delete(key, where, precondition(request), idempotency_key(request))


def encode_delete(request: Request, message: Delete, answer: Answer[messages.Written]) -> Response:
    """No content."""
    return Response(answer.revision, b"", 204)


def routes() -> list[Route]:
    """Return the routes."""
    path = _PREFIX + "{key:(?s:.+)}"
    get = Route(
        method="GET",
        path=path,
        endpoint=Endpoint(parse_get, encode_get),
        summary="Read a key",
        headers=(TRANSACTION, IF_CHANGED),
        responses={
            200: ResponseSpec(
                "The value, with its content type",
                {"*/*": bytes},
                (ETAG, EXPIRES_AT, *always(SECURITY_HEADERS)),
            ),
            304: ResponseSpec("Not modified", headers=(ETAG, EXPIRES_AT, *always(SECURITY_HEADERS))),
        },
        errors=(errors.KeyNotFound, errors.RecordDamaged),
    )
    return [
        Route(
            method="PUT",
            path=path,
            endpoint=Endpoint(parse_put, encode_put),
            summary="Store a value: the body, kept with its content type",
            headers=(TRANSACTION, IDEMPOTENCY_KEY, IF_MATCH, IF_ABSENT),
            query=PutQuery,
            body=Body({BINARY: bytes, JSON: Any, "text/plain": str}),
            responses={
                200: json_spec(Written, "Replaced", NEW_TAG),
                201: json_spec(Written, "Created", NEW_TAG),
            },
            errors=(errors.ValueTooLarge, *WRITE_ERRORS),
        ),
        get,
        get.head(),
        Route(
            method="DELETE",
            path=path,
            endpoint=Endpoint(parse_delete, encode_delete),
            summary="Delete a key",
            headers=(TRANSACTION, IDEMPOTENCY_KEY, IF_MATCH, IF_ABSENT),
            responses={204: ResponseSpec("Deleted")},
            errors=(errors.KeyNotFound, *WRITE_ERRORS),
        ),
    ]
