"""Many operations as one: POST /v1/batch."""

from typing import Any, Final

import msgspec

from kvactor import errors
from kvactor.api.batch import BatchBody, BatchCheck, BatchResponse
from kvactor.api.operations import AnyOp, to_json
from kvactor.api.values import JSON, encode, item
from kvactor.core import messages
from kvactor.core.context import Page
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
from kvactor.web.steps import Steps, at_once, each, encoded

_body = msgspec.json.Decoder(BatchBody)

#: Bytes that an item takes beside the body, about: decoded, and as the core's.
ITEM_SIZE: Final = 300


class BatchRoutes:
    """The endpoint of batches. `maximum` is how many checks and operations one may have."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum

    def parse(self, request: Request) -> Batch:
        """POST /v1/batch."""
        return at_once(self.parse_steps(request))

    def parse_steps(self, request: Request) -> Steps[Batch]:
        """POST /v1/batch, in steps. Its first decodes the body: it ends at the first item that is none.

        Raises `BatchTooLarge` and `InvalidRequest`.
        """
        body = json_body(request, _body)
        count = len(body.operations) + len(body.checks)
        if count > self._maximum:
            raise batch_too_large(self._maximum)
        # The core's operations have copies of the values.
        yield count * ITEM_SIZE + len(request.body)
        operations = yield from each(_to_core, list(enumerate(body.operations)))
        checks = yield from each(BatchCheck.to_core, body.checks)
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
) -> Steps[Response]:
    """The same in steps."""
    done = zip(message.operations, answer.result.results, strict=True)
    results = yield from encoded(
        _page(result) if isinstance(result, Page) else to_json(operation, result)
        for operation, result in done
    )
    revision = encode(answer.result.revision or None)
    return Response(answer.revision, b'{"revision":%b,"results":[%b]}' % (revision, results))


def _page(page: Page) -> Steps[bytes]:
    """Return what `RangeOp.to_json` does as JSON, in steps: a page may be as large as all results."""
    items = yield from encoded(item(*one) for one in page.items)
    return b'{"items":[%b],"more":%b}' % (items, encode(page.more))


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
