"""The six routes of the seed service, and all their quirks.

Their requests speak in the shared transaction, because a `curl` per step has no other identity,
unless the header `Kvactor-Transaction` names an isolated one. Values are kept as the JSON text that
was sent.
"""

import msgspec
from aiohttp import web
from msgspec import UNSET

from kvactor.actor import StoreActor
from kvactor.errors import KeyAndValueRequired
from kvactor.messages import SHARED, Begin, Commit, Delete, Get, Rollback, Set
from kvactor.records import is_json, value_of
from kvactor.web.answers import answer
from kvactor.web.requests import Bodies, key_in_path, once_of, parse, within
from kvactor.web.values import JSON, encode, item

_NOTHING = msgspec.Raw()


class SetBody(msgspec.Struct):
    """The body of POST /set. What is missing is told apart from what is wrong."""

    key: str | None = None
    value: msgspec.Raw = _NOTHING


class SeedRoutes:
    """Handlers that parse, ask and encode."""

    def __init__(self, actor: StoreActor, bodies: Bodies) -> None:
        self._ask = actor.ask
        self._body_of = bodies.read
        self._decoder = msgspec.json.Decoder(SetBody)
        self._encode = encode

    def routes(self) -> list[web.RouteDef]:
        """Return the six routes."""
        return [
            web.post("/set", self.set),
            web.get("/get/{key:(?s:.+)}", self.get),
            web.delete("/delete/{key:(?s:.+)}", self.delete),
            web.post("/begin", self.begin),
            web.post("/rollback", self.rollback),
            web.post("/commit", self.commit),
        ]

    async def set(self, request: web.Request) -> web.Response:
        """POST /set {"key", "value"}."""
        text = await self._body_of(request)
        body = parse(self._decoder, text)
        value = bytes(body.value)
        if not body.key or value in {b"", b"null"}:
            raise KeyAndValueRequired("Key and value are required")
        asked = Set(
            body.key.encode(), value, JSON, within(request, SHARED), once=once_of(request, text)
        )
        return answer((await self._ask(asked)).revision, b'{"status":"ok"}')

    async def get(self, request: web.Request) -> web.Response:
        """GET /get/{key}."""
        key = key_in_path(request, "/get/")
        got = await self._ask(Get(key, within(request, SHARED)))
        name, record = self._encode(key.decode()), got.result
        if is_json(record):
            return answer(got.revision, b'{"key":%b,"value":%b}' % (name, value_of(record)))
        shown = item(key, record)
        told = {"key": shown.key, "value": shown.value, "value_base64": shown.value_base64}
        return answer(got.revision, self._encode({k: v for k, v in told.items() if v is not UNSET}))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /delete/{key}."""
        asked = Delete(key_in_path(request, "/delete/"), within(request, SHARED), once=once_of(request))
        return answer((await self._ask(asked)).revision, b'{"status":"deleted"}')

    async def begin(self, request: web.Request) -> web.Response:
        """POST /begin."""
        begun = await self._ask(Begin(within(request, SHARED)))
        return answer(begun.revision, b'{"status":"transaction started"}')

    async def rollback(self, request: web.Request) -> web.Response:
        """POST /rollback."""
        rolled_back = await self._ask(Rollback(within(request, SHARED)))
        return answer(rolled_back.revision, b'{"status":"transaction rolled back"}')

    async def commit(self, request: web.Request) -> web.Response:
        """POST /commit."""
        committed = await self._ask(Commit(within(request, SHARED)))
        return answer(committed.revision, b'{"status":"transaction committed"}')
