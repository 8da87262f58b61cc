"""The six simple routes, and all their quirks.

Their requests belong to the shared transaction, because a `curl` per step has no other identity, unless
the header `Kvactor-Transaction` names an isolated one. Values are kept as the JSON text that was sent.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET

from kvactor import errors
from kvactor.api.simple import KeyValue, SetBody, StatusBody
from kvactor.api.values import JSON, encode, item
from kvactor.core.messages import SHARED, Answer, Begin, Commit, Execute, Message, Rollback
from kvactor.core.operations import Delete, Get, Set
from kvactor.core.records import is_json, value_of
from kvactor.web import single
from kvactor.web.http import Request, Response, idempotency_key, json_body, key_in_path, transaction
from kvactor.web.routes import (
    IDEMPOTENCY_KEY,
    TRANSACTION,
    WRITE_ERRORS,
    Body,
    Endpoint,
    Route,
    json_spec,
)

_set_body = msgspec.json.Decoder(SetBody)


def parse_set(request: Request) -> Message[Any]:
    """POST /set {"key", "value"}."""
    body = json_body(request, _set_body)
    value = b"" if body.value is UNSET else bytes(body.value)
    if not body.key or value in {b"", b"null"}:
        raise errors.KeyAndValueRequired("Key and value are required")
    operation = Set(body.key.encode(), value, JSON)
    return single.write(operation, transaction(request, SHARED), idempotency_key(request))


def parse_get(request: Request) -> Execute[bytes | None]:
    """GET /get/{key}."""
    return Execute(Get(key_in_path(request, "/get/")), transaction(request, SHARED))


def encode_get(
    request: Request, message: Execute[bytes | None], answer: Answer[bytes | None]
) -> Response:
    """The key and its value. Raises `KeyNotFound`."""
    # parse_get has made a Get.
    key, record = message.operation.key, answer.result  # type: ignore[attr-defined]
    if record is None:
        raise errors.KeyNotFound("Key not found")
    if is_json(record):
        body = b'{"key":%b,"value":%b}' % (encode(key.decode()), value_of(record))
        return Response(answer.revision, body)
    shown = item(key, record)
    return Response(answer.revision, encode(KeyValue(shown.key, shown.value, shown.value_base64)))


def parse_delete(request: Request) -> Message[Any]:
    """DELETE /delete/{key}."""
    operation = Delete(key_in_path(request, "/delete/"), must_exist=True)
    return single.write(operation, transaction(request, SHARED), idempotency_key(request))


def parse_begin(request: Request) -> Begin:
    """POST /begin."""
    return Begin(transaction(request, SHARED))


def parse_rollback(request: Request) -> Rollback:
    """POST /rollback."""
    return Rollback(transaction(request, SHARED))


def parse_commit(request: Request) -> Commit:
    """POST /commit."""
    return Commit(transaction(request, SHARED))


def encode_status(status: str) -> Callable[[Request, Message[Any], Answer[Any]], Response]:
    """Return an encoder that gives every answer this status."""
    body = encode(StatusBody(status))

    def encode_answer(request: Request, message: Message[Any], answer: Answer[Any]) -> Response:
        return Response(answer.revision, body)

    return encode_answer


def routes() -> list[Route]:
    """Return the six routes."""
    return [
        Route(
            method="POST",
            path="/set",
            endpoint=Endpoint(parse_set, encode_status("ok"), single.explain),
            summary="Store a JSON value under a key",
            headers=(TRANSACTION, IDEMPOTENCY_KEY),
            body=Body({JSON: SetBody}),
            responses={200: json_spec(StatusBody)},
            errors=(
                errors.KeyAndValueRequired,
                errors.InvalidKey,
                errors.ValueTooLarge,
                *WRITE_ERRORS,
            ),
        ),
        Route(
            method="GET",
            path="/get/{key:(?s:.+)}",
            endpoint=Endpoint(parse_get, encode_get),
            summary="Read a key",
            headers=(TRANSACTION,),
            responses={200: json_spec(KeyValue)},
            errors=(errors.KeyNotFound, errors.RecordDamaged),
        ),
        Route(
            method="DELETE",
            path="/delete/{key:(?s:.+)}",
            endpoint=Endpoint(parse_delete, encode_status("deleted"), single.explain),
            summary="Delete a key",
            headers=(TRANSACTION, IDEMPOTENCY_KEY),
            responses={200: json_spec(StatusBody)},
            errors=(errors.KeyNotFound, *WRITE_ERRORS),
        ),
        Route(
            method="POST",
            path="/begin",
            endpoint=Endpoint(parse_begin, encode_status("transaction started")),
            summary="Open the shared transaction, or go one level deeper",
            headers=(TRANSACTION,),
            responses={200: json_spec(StatusBody)},
            errors=(errors.TransactionTooDeep,),
        ),
        Route(
            method="POST",
            path="/rollback",
            endpoint=Endpoint(parse_rollback, encode_status("transaction rolled back")),
            summary="Discard the writes since the last begin",
            headers=(TRANSACTION,),
            responses={200: json_spec(StatusBody)},
            errors=(errors.NoTransaction,),
        ),
        Route(
            method="POST",
            path="/commit",
            endpoint=Endpoint(parse_commit, encode_status("transaction committed")),
            summary="Merge the writes since the last begin into the level above, or store them",
            headers=(TRANSACTION,),
            responses={200: json_spec(StatusBody)},
            errors=(errors.NoTransaction, errors.StorageFull, errors.WritesStalled),
        ),
    ]
