"""Many operations as one: POST /v1/batch."""

from collections.abc import Generator
from typing import Any

import msgspec
from msgspec import Raw

from kvactor import errors
from kvactor.api.batch import BatchBody, BatchCheck, BatchResponse
from kvactor.api.operations import AnyOp, to_json
from kvactor.api.values import JSON, encode
from kvactor.core import messages
from kvactor.core.messages import AUTOCOMMIT, Answer, Batch
from kvactor.core.operations import Operation
from kvactor.errors import InvalidRequest, batch_too_large
from kvactor.settings import Settings
from kvactor.web.http import Request, Response, idempotency_key, json_body, transaction
from kvactor.web.routes import (
    IDEMPOTENCY_KEY,
    TRANSACTION,
    WRITE_ERRORS,
    Body,
    Endpoint,
    Route,
    json_spec,
)
from kvactor.web.steps import at_once, each, encoded

_body = msgspec.json.Decoder(BatchBody)
_operation = msgspec.json.Decoder(AnyOp)
_check = msgspec.json.Decoder(BatchCheck)


class _Shallow(msgspec.Struct, forbid_unknown_fields=True):
    """The body, with its items not decoded yet."""

    operations: list[Raw]
    checks: list[Raw] = []


_shallow = msgspec.json.Decoder(_Shallow)


class BatchRoutes:
    """The endpoint of batches. `maximum` is how many checks and operations one may have."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum

    def parse(self, request: Request) -> Batch:
        """POST /v1/batch."""
        return at_once(self.parse_steps(request))

    def parse_steps(self, request: Request) -> Generator[None, None, Batch]:
        """POST /v1/batch, in steps. The executor refuses too many items, too: here, none is decoded.

        Raises `BatchTooLarge` and `InvalidRequest`.
        """
        body = json_body(request, _shallow)
        if len(body.operations) + len(body.checks) > self._maximum:
            raise batch_too_large(self._maximum)
        try:
            decoded = yield from each(_operation.decode, body.operations)
            decoded_checks = yield from each(_check.decode, body.checks)
        except msgspec.ValidationError:
            json_body(request, _body)  # raises the error with its place in the whole body
            raise
        operations = yield from each(_to_core, list(enumerate(decoded)))
        checks = yield from each(BatchCheck.to_core, decoded_checks)
        where = transaction(request, AUTOCOMMIT)
        return Batch(tuple(operations), tuple(checks), where, idempotency_key(request))


def _to_core(numbered: tuple[int, AnyOp]) -> Operation[Any]:
    index, operation = numbered
    try:
        return operation.to_core()
    except InvalidRequest as error:
        error.details = {"operation": index}
        raise


def encode_batch(request: Request, message: Batch, answer: Answer[messages.BatchResponse]) -> Response:
    """The revision, and a result for each operation."""
    return at_once(encode_steps(request, message, answer))


def encode_steps(
    request: Request, message: Batch, answer: Answer[messages.BatchResponse]
) -> Generator[None, None, Response]:
    """The same in steps."""
    done = zip(message.operations, answer.result.results, strict=True)
    results = yield from encoded(to_json(operation, result) for operation, result in done)
    revision = encode(answer.result.revision or None)
    return Response(answer.revision, b'{"revision":%b,"results":[%b]}' % (revision, results))


def routes(settings: Settings) -> list[Route]:
    """Return the route."""
    batch = BatchRoutes(settings.max_batch_size)
    return [
        Route(
            method="POST",
            path="/v1/batch",
            endpoint=Endpoint(
                batch.parse,
                encode_batch,
                large=True,
                parse_steps=batch.parse_steps,
                encode_steps=encode_steps,
            ),
            summary="Do many operations as one, in order, if all checks hold",
            headers=(TRANSACTION, IDEMPOTENCY_KEY),
            body=Body({JSON: BatchBody}),
            responses={200: json_spec(BatchResponse)},
            errors=(
                errors.ChecksFailed,
                errors.InvalidKey,
                errors.NotAnInteger,
                errors.ValueTooLarge,
                errors.BatchTooLarge,
                errors.RangeTooLarge,
                errors.AnswerTooLarge,
                *WRITE_ERRORS,
            ),
        )
    ]
