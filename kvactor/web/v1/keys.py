"""Keys as resources: /v1/kv/{key}."""

from collections.abc import Mapping
from typing import Any, Final

from multidict import istr

from kvactor import errors
from kvactor.api.keys import PutQuery, Written
from kvactor.api.values import BINARY, JSON, checked_type, expiry
from kvactor.core import records
from kvactor.core.messages import AUTOCOMMIT, Answer, Execute, Message
from kvactor.core.operations import Delete, Get, Set
from kvactor.core.records import NEVER
from kvactor.web import http, single
from kvactor.web.entity_tags import not_modified, precondition, tag, tag_of
from kvactor.web.http import (
    CONTENT_TYPE,
    Request,
    Response,
    idempotency_key,
    json_response,
    key_in_path,
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
    constant_headers,
    json_spec,
)

#: With these, a browser does not run a stored page in this origin, and caches do not keep a value.
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    istr("X-Content-Type-Options"): "nosniff",
    istr("Content-Security-Policy"): "sandbox; default-src 'none'",
    istr("Cross-Origin-Resource-Policy"): "same-origin",
    istr("Cache-Control"): "no-cache",
    istr("Vary"): str(http.TRANSACTION),
}

_PREFIX = "/v1/kv/"
_ETAG = istr("ETag")


def parse_put(request: Request) -> Message[Any]:
    """PUT /v1/kv/{key}."""
    key, ttl = key_in_path(request, _PREFIX), query(request, PutQuery).ttl
    content_type = checked_type(request.headers.get(CONTENT_TYPE, BINARY), request.body)
    where, condition = transaction(request, AUTOCOMMIT), precondition(request)
    operation = Set(
        key,
        request.body,
        content_type,
        None if ttl is None else max(1, int(ttl * 1000)),
        # A precondition reads the key anyway.
        report_created=condition is not None or where is AUTOCOMMIT,
    )
    return single.write(operation, where, idempotency_key(request), condition)


def encode_put(request: Request, message: Message[Any], answer: Answer[Any]) -> Response:
    """The revision, once there is one."""
    revision, created = single.outcome(message, answer)
    headers = {"ETag": tag(revision)} if revision else {}
    return json_response(answer.revision, Written(revision), 201 if created else 200, headers)


def parse_get(request: Request) -> Execute[bytes | None]:
    """GET and HEAD /v1/kv/{key}."""
    return Execute(Get(key_in_path(request, _PREFIX)), transaction(request, AUTOCOMMIT))


def encode_get(
    request: Request, message: Execute[bytes | None], answer: Answer[bytes | None]
) -> Response:
    """The value; or 304 if the client has it. Raises `KeyNotFound`, `PreconditionFailed` and
    `InvalidRequest`.
    """
    if answer.result is None:
        raise errors.KeyNotFound("Key not found")
    record = records.decode(answer.result)
    shown = tag_of(request, record)
    headers = {_ETAG: shown, **SECURITY_HEADERS}
    if record.expires_at != NEVER:
        headers["Kvactor-Expires-At"] = expiry(record.expires_at) or ""
    if not_modified(request, shown):
        return Response(answer.revision, b"", 304, record.content_type, headers)
    return Response(answer.revision, record.value, 200, record.content_type, headers)


def parse_delete(request: Request) -> Message[Any]:
    """DELETE /v1/kv/{key}."""
    operation = Delete(key_in_path(request, _PREFIX), must_exist=True)
    where, condition = transaction(request, AUTOCOMMIT), precondition(request)
    return single.write(operation, where, idempotency_key(request), condition)


def encode_delete(request: Request, message: Message[Any], answer: Answer[Any]) -> Response:
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
        headers=(TRANSACTION, IF_MATCH, IF_CHANGED),
        responses={
            200: ResponseSpec(
                "The value, with its content type",
                {"*/*": bytes},
                (ETAG, EXPIRES_AT, *constant_headers(SECURITY_HEADERS)),
            ),
            304: ResponseSpec(
                "Not modified", headers=(ETAG, EXPIRES_AT, *constant_headers(SECURITY_HEADERS))
            ),
        },
        errors=(errors.KeyNotFound, errors.RecordDamaged),
    )
    return [
        Route(
            method="PUT",
            path=path,
            endpoint=Endpoint(parse_put, encode_put, single.explain),
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
            endpoint=Endpoint(parse_delete, encode_delete, single.explain),
            summary="Delete a key",
            headers=(TRANSACTION, IDEMPOTENCY_KEY, IF_MATCH, IF_ABSENT),
            responses={204: ResponseSpec("Deleted")},
            errors=(errors.KeyNotFound, *WRITE_ERRORS),
        ),
    ]
