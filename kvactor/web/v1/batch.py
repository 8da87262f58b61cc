"""Many operations as one: POST /v1/batch."""

from collections.abc import Generator
from typing import Any, TypeVar

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
from kvactor.web.steps import at_once

_body = msgspec.json.Decoder(BatchBody)
_operation = msgspec.json.Decoder(AnyOp)
_check = msgspec.json.Decoder(BatchCheck)

T = TypeVar("T")

#: Operations that are parsed, and results that are encoded, in one step: about a millisecond.
ITEMS_PER_STEP = 300

#: Bytes of results that are encoded in one step, about.
BYTES_PER_STEP = 1 << 20


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
        """POST /v1/batch, in steps. Items are decoded only once it is clear that they are not too many.

        Raises `BatchTooLarge` and `InvalidRequest`.
        """
        body = json_body(request, _shallow)
        if len(body.operations) + len(body.checks) > self._maximum:
            raise batch_too_large(self._maximum)
        try:
            decoded = yield from _decoded(body.operations, _operation)
            checks = yield from _decoded(body.checks, _check)
        except msgspec.ValidationError:
            json_body(request, _body)  # raises the error with its place in the whole body
            raise
        operations: list[Operation[Any]] = []
        for index, operation in enumerate(decoded):
            if index % ITEMS_PER_STEP == ITEMS_PER_STEP - 1:
                yield
            try:
                operations.append(operation.to_core())
            except InvalidRequest as error:
                error.details = {"operation": index}
                raise
        where = transaction(request, AUTOCOMMIT)
        key = idempotency_key(request)
        return Batch(tuple(operations), tuple(check.to_core() for check in checks), where, key)


def _decoded(items: list[Raw], decoder: msgspec.json.Decoder[T]) -> Generator[None, None, list[T]]:
    decoded: list[T] = []
    for first in range(0, len(items), ITEMS_PER_STEP):
        decoded += map(decoder.decode, items[first : first + ITEMS_PER_STEP])
        yield
    return decoded


def encode_batch(request: Request, message: Batch, answer: Answer[messages.BatchResponse]) -> Response:
    """The revision, and a result for each operation."""
    return at_once(encode_steps(request, message, answer))


def encode_steps(
    request: Request, message: Batch, answer: Answer[messages.BatchResponse]
) -> Generator[None, None, Response]:
    """The same in steps."""
    pieces: list[bytes] = []
    size = 0
    step_end = BYTES_PER_STEP
    for index, (operation, result) in enumerate(
        zip(message.operations, answer.result.results, strict=True)
    ):
        piece = encode(to_json(operation, result))
        pieces.append(piece)
        size += len(piece)
        if index % ITEMS_PER_STEP == ITEMS_PER_STEP - 1 or size > step_end:
            step_end = size + BYTES_PER_STEP
            yield
    revision = encode(answer.result.revision or None)
    return Response(answer.revision, b'{"revision":%b,"results":[%b]}' % (revision, b",".join(pieces)))


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
