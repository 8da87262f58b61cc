"""Isolated transactions as resources: /v1/transactions."""

from collections.abc import Callable
from typing import Annotated

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import UNSET, Meta, UnsetType

from kvactor import errors
from kvactor.actor import StoreActor
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
from kvactor.settings import MAX_SECONDS
from kvactor.web.answers import answer
from kvactor.web.requests import Bodies, parse
from kvactor.web.routes import GONE, LOCATION, Body, Reply, Route, said
from kvactor.web.values import JSON, encode, moment


class OpenBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body, if there is one, of POST /v1/transactions: seconds of idleness after which it is
    rolled back.
    """

    idle_timeout: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] | None = None


class State(msgspec.Struct):
    """A transaction after the request."""

    id: str
    depth: Annotated[int, Meta(ge=0, description="levels of nesting; 0: it is over")]
    expires_at: Annotated[
        str | UnsetType, Meta(description="when it is rolled back if idle until then: RFC 3339, UTC")
    ] = UNSET


class TransactionRoutes:
    """Handlers that parse, ask and encode. `new_id` makes ids that nobody can guess."""

    def __init__(self, actor: StoreActor, bodies: Bodies, new_id: Callable[[], str]) -> None:
        self._ask = actor.ask
        self._body_of = bodies.read
        self._new_id = new_id
        self._decoder = msgspec.json.Decoder(OpenBody)

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/v1/transactions/{id}"
        return [
            Route(
                method="POST",
                path="/v1/transactions",
                handler=self.open,
                summary="Open an isolated transaction",
                body=Body({JSON: OpenBody}, required=False),
                answers={201: said(State, "It is open.", LOCATION)},
                errors=(errors.TooManyTransactions,),
            ),
            Route(
                method="GET",
                path=one,
                handler=self.on(Inspect),
                summary="Look at a transaction",
                answers={200: said(State)},
                errors=GONE,
            ),
            Route(
                method="DELETE",
                path=one,
                handler=self.drop,
                summary="Roll a transaction back whole",
                answers={204: Reply("It is gone.")},
                errors=GONE,
            ),
            Route(
                method="POST",
                path=one + "/begin",
                handler=self.on(Begin),
                summary="Go one level deeper",
                answers={200: said(State)},
                errors=(*GONE, errors.TransactionTooDeep),
            ),
            Route(
                method="POST",
                path=one + "/rollback",
                handler=self.on(Rollback),
                summary="Forget what was written since the last begin, and go one level up",
                answers={200: said(State)},
                errors=GONE,
            ),
            Route(
                method="POST",
                path=one + "/commit",
                handler=self.on(Commit),
                summary="Merge what was written since the last begin into the level above, or store it",
                answers={200: said(State)},
                errors=(*GONE, errors.StorageFull, errors.WritesStalled),
            ),
        ]

    async def open(self, request: web.Request) -> web.Response:
        """POST /v1/transactions."""
        body = await self._body_of(request)
        seconds = parse(self._decoder, body).idle_timeout if body else None
        asked = Open(self._new_id(), None if seconds is None else int(seconds * 1000))
        opened = await self._ask(asked)
        return _describe(opened, 201, {"Location": f"/v1/transactions/{asked.id}"})

    def on(self, kind: Callable[[str], Message[TransactionState]]) -> Handler:
        """Return the handler that sends a message of this kind to the transaction in the path."""

        async def handler(request: web.Request) -> web.Response:
            return _describe(await self._ask(kind(request.match_info["id"])))

        return handler

    async def drop(self, request: web.Request) -> web.Response:
        """DELETE /v1/transactions/{id}."""
        dropped = await self._ask(Drop(request.match_info["id"]))
        return answer(dropped.revision, b"", 204)


def _describe(
    answered: Answer[TransactionState], status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    state = answered.result
    expires_at = moment(state.expires_at) if state.depth else UNSET
    body = State(state.id or "", state.depth, expires_at)
    return answer(answered.revision, encode(body), status, headers=headers)
