"""Isolated transactions as resources: /v1/transactions."""

from collections.abc import Callable

import msgspec
from msgspec import UNSET

from kvactor import errors
from kvactor.api import transactions as api
from kvactor.api.transactions import OpenBody
from kvactor.api.values import JSON, rfc3339
from kvactor.core.messages import (
    Answer,
    Begin,
    Commit,
    Drop,
    Inspect,
    Message,
    Open,
    Rollback,
    TransactionState,
)
from kvactor.web.http import Request, Response, json_body, json_response
from kvactor.web.routes import (
    LOCATION,
    TRANSACTION_ERRORS,
    Body,
    Endpoint,
    ResponseSpec,
    Route,
    json_spec,
)

Step = Message[TransactionState]

_open_body = msgspec.json.Decoder(OpenBody)


class TransactionRoutes:
    """Endpoints of transactions. `new_id` makes ids that nobody can guess."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/v1/transactions/{id}"
        return [
            Route(
                method="POST",
                path="/v1/transactions",
                endpoint=Endpoint(self.parse_open, encode_open),
                summary="Open an isolated transaction",
                body=Body({JSON: OpenBody}, required=False),
                responses={201: json_spec(api.TransactionState, "Created", LOCATION)},
                errors=(errors.TooManyTransactions,),
            ),
            Route(
                method="GET",
                path=one,
                endpoint=Endpoint(parse_for(Inspect), encode_state),
                summary="Look at a transaction",
                responses={200: json_spec(api.TransactionState)},
                errors=TRANSACTION_ERRORS,
            ),
            Route(
                method="DELETE",
                path=one,
                endpoint=Endpoint(parse_for(Drop), encode_drop),
                summary="Roll a transaction back whole",
                responses={204: ResponseSpec("Rolled back")},
                errors=TRANSACTION_ERRORS,
            ),
            Route(
                method="POST",
                path=one + "/begin",
                endpoint=Endpoint(parse_for(Begin), encode_state),
                summary="Go one level deeper",
                responses={200: json_spec(api.TransactionState)},
                errors=(*TRANSACTION_ERRORS, errors.TransactionTooDeep),
            ),
            Route(
                method="POST",
                path=one + "/rollback",
                endpoint=Endpoint(parse_for(Rollback), encode_state),
                summary="Discard the writes since the last begin, and go one level up",
                responses={200: json_spec(api.TransactionState)},
                errors=TRANSACTION_ERRORS,
            ),
            Route(
                method="POST",
                path=one + "/commit",
                endpoint=Endpoint(parse_for(Commit), encode_state),
                summary="Merge the writes since the last begin into the level above, or store them",
                responses={200: json_spec(api.TransactionState)},
                errors=(*TRANSACTION_ERRORS, errors.StorageFull, errors.WritesStalled),
            ),
        ]

    def parse_open(self, request: Request) -> Open:
        """POST /v1/transactions."""
        body = json_body(request, _open_body) if request.body else OpenBody()
        seconds = body.idle_timeout
        timeout = None if seconds is None else int(seconds * 1000)
        return Open(self._new_id(), timeout, body.retry_of)


def parse_for(
    kind: Callable[[str], Step],
) -> Callable[[Request], Step]:
    """Return a parser: a request becomes a message of this kind to the transaction in its path."""

    def parse(request: Request) -> Step:
        return kind(request.parameters["id"])

    return parse


def encode_state(request: Request, message: Step, answer: Answer[TransactionState]) -> Response:
    """The transaction after the request."""
    return json_response(answer.revision, _state(answer.result))


def encode_open(request: Request, message: Step, answer: Answer[TransactionState]) -> Response:
    """The transaction and its location."""
    state = _state(answer.result)
    return json_response(answer.revision, state, 201, {"Location": f"/v1/transactions/{state.id}"})


def encode_drop(request: Request, message: Step, answer: Answer[TransactionState]) -> Response:
    """No content."""
    return Response(answer.revision, b"", 204)


def _state(state: TransactionState) -> api.TransactionState:
    expires_at = rfc3339(state.expires_at) if state.depth else UNSET
    return api.TransactionState(state.id or "", state.depth, expires_at)
