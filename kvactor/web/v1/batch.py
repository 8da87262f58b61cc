"""Many operations as one: POST /v1/batch."""

from typing import Any

import msgspec

from kvactor import errors
from kvactor.api.batch import BatchBody, BatchResponse
from kvactor.api.operations import to_json
from kvactor.api.values import JSON
from kvactor.core import messages
from kvactor.core.messages import AUTOCOMMIT, Answer, Batch
from kvactor.core.operations import Operation
from kvactor.errors import InvalidRequest
from kvactor.web.http import Request, Response, idempotency_key, json_body, json_response, transaction
from kvactor.web.routes import (
    IDEMPOTENCY_KEY,
    TRANSACTION,
    WRITE_ERRORS,
    Body,
    Endpoint,
    Route,
    json_spec,
)

_body = msgspec.json.Decoder(BatchBody)


def parse_batch(request: Request) -> Batch:
    """POST /v1/batch."""
    body = json_body(request, _body)
    operations: list[Operation[Any]] = []
    for index, operation in enumerate(body.operations):
        try:
            operations.append(operation.to_core())
        except InvalidRequest as error:
            error.details = {"operation": index}
            raise
    checks = tuple(check.to_core() for check in body.checks)
    where = transaction(request, AUTOCOMMIT)
    return Batch(tuple(operations), checks, where, idempotency_key(request))


def encode_batch(request: Request, message: Batch, answer: Answer[messages.BatchResponse]) -> Response:
    """The revision, and a result for each operation."""
    done = answer.result
    results = [
        to_json(operation, result)
        for operation, result in zip(message.operations, done.results, strict=True)
    ]
    return json_response(answer.revision, BatchResponse(done.revision or None, results))


def routes() -> list[Route]:
    """Return the route."""
    return [
        Route(
            method="POST",
            path="/v1/batch",
            endpoint=Endpoint(parse_batch, encode_batch, large=True),
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
