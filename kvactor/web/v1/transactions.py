"""Isolated transactions as resources: /v1/transactions."""

from collections.abc import Callable
from typing import Annotated

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Meta

from kvactor.actor import StoreActor
from kvactor.messages import (
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
from kvactor.web.values import moment


class OpenBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body, if there is one, of POST /v1/transactions: seconds of idleness after which it is
    rolled back.
    """

    idle_timeout: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] | None = None


class TransactionRoutes:
    """Handlers that parse, ask and encode. `new_id` makes ids that nobody can guess."""

    def __init__(self, actor: StoreActor, bodies: Bodies, new_id: Callable[[], str]) -> None:
        self._ask = actor.ask
        self._body_of = bodies.read
        self._new_id = new_id
        self._decoder = msgspec.json.Decoder(OpenBody)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        one = "/v1/transactions/{id}"
        return [
            web.post("/v1/transactions", self.open),
            web.get(one, self.on(Inspect)),
            web.delete(one, self.drop),
            web.post(one + "/begin", self.on(Begin)),
            web.post(one + "/rollback", self.on(Rollback)),
            web.post(one + "/commit", self.on(Commit)),
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
    fields: dict[str, object] = {"id": state.id, "depth": state.depth}
    if state.depth:
        fields["expires_at"] = moment(state.expires_at)
    return answer(answered.revision, msgspec.json.encode(fields), status, headers=headers)
