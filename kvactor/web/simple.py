"""The six routes of the seed service, and all their quirks.

Their requests speak in the shared transaction, because a `curl` per step has no other identity,
unless the header `Kvactor-Transaction` names an isolated one. Values are kept as the JSON text that
was sent.
"""

from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.messages import SHARED, Batch, Begin, Commit, Execute, Message, Rollback
from kvactor.core.operations import Delete, Get, PlainOperation, Set
from kvactor.core.records import is_json, value_of
from kvactor.web.answers import answer
from kvactor.web.requests import Bodies, key_in_path, missing, once_of, parse, single, within
from kvactor.web.routes import ONCE, WITHIN, WRITING, Body, Route, said
from kvactor.web.values import JSON, encode, item


class SetBody(msgspec.Struct):
    """The body of POST /set. What is missing is told apart from what is wrong."""

    key: str | None = None
    value: msgspec.Raw | UnsetType = UNSET


class Told(msgspec.Struct):
    """What was done."""

    status: str


class Got(msgspec.Struct):
    """A key's value; in base64 if it is neither JSON nor text."""

    key: str
    value: msgspec.Raw | str | UnsetType = UNSET
    value_base64: bytes | UnsetType = UNSET


class SeedRoutes:
    """Handlers that parse, ask and encode."""

    def __init__(self, actor: StoreActor, bodies: Bodies) -> None:
        self._ask = actor.ask
        self._body_of = bodies.read
        self._decoder = msgspec.json.Decoder(SetBody)
        self._encode = encode

    def routes(self) -> list[Route]:
        """Return the six routes."""
        return [
            Route(
                method="POST",
                path="/set",
                handler=self.set,
                summary="Give a key a JSON value",
                headers=(WITHIN, ONCE),
                body=Body({JSON: SetBody}),
                answers={200: said(Told)},
                errors=(
                    errors.KeyAndValueRequired,
                    errors.InvalidKey,
                    errors.ValueTooLarge,
                    *WRITING,
                ),
            ),
            Route(
                method="GET",
                path="/get/{key:(?s:.+)}",
                handler=self.get,
                summary="Read a key",
                headers=(WITHIN,),
                answers={200: said(Got)},
                errors=(errors.KeyNotFound, errors.RecordDamaged),
            ),
            Route(
                method="DELETE",
                path="/delete/{key:(?s:.+)}",
                handler=self.delete,
                summary="Remove a key",
                headers=(WITHIN, ONCE),
                answers={200: said(Told)},
                errors=(errors.KeyNotFound, *WRITING),
            ),
            Route(
                method="POST",
                path="/begin",
                handler=self.begin,
                summary="Open the shared transaction, or go one level deeper",
                headers=(WITHIN,),
                answers={200: said(Told)},
                errors=(errors.TransactionTooDeep,),
            ),
            Route(
                method="POST",
                path="/rollback",
                handler=self.rollback,
                summary="Forget what was written since the last begin",
                headers=(WITHIN,),
                answers={200: said(Told)},
                errors=(errors.NoTransaction,),
            ),
            Route(
                method="POST",
                path="/commit",
                handler=self.commit,
                summary="Merge what was written since the last begin into the level above, or store it",
                headers=(WITHIN,),
                answers={200: said(Told)},
                errors=(errors.NoTransaction, errors.StorageFull, errors.WritesStalled),
            ),
        ]

    async def set(self, request: web.Request) -> web.Response:
        """POST /set {"key", "value"}."""
        text = await self._body_of(request)
        body = parse(self._decoder, text)
        value = b"" if body.value is UNSET else bytes(body.value)
        if not body.key or value in {b"", b"null"}:
            raise errors.KeyAndValueRequired("Key and value are required")
        asked = write(Set(body.key.encode(), value, JSON), request, once_of(request, text))
        try:
            answered = await self._ask(asked)
        except errors.KvactorError as error:
            raise single(error)  # noqa: B904 (it is the same one)
        return answer(answered.revision, b'{"status":"ok"}')

    async def get(self, request: web.Request) -> web.Response:
        """GET /get/{key}."""
        key = key_in_path(request, "/get/")
        got = await self._ask(Execute(Get(key), within(request, SHARED)))
        name, record = self._encode(key.decode()), got.result
        if record is None:
            raise missing(got)
        if is_json(record):
            return answer(got.revision, b'{"key":%b,"value":%b}' % (name, value_of(record)))
        shown = item(key, record)
        return answer(got.revision, self._encode(Got(shown.key, shown.value, shown.value_base64)))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE /delete/{key}."""
        operation = Delete(key_in_path(request, "/delete/"), must_exist=True)
        asked = write(operation, request, once_of(request))
        try:
            answered = await self._ask(asked)
        except errors.KvactorError as error:
            raise single(error)  # noqa: B904 (it is the same one)
        return answer(answered.revision, b'{"status":"deleted"}')

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


def write(operation: Set | Delete, request: web.Request, once: IdempotencyKey | None) -> Message[Any]:
    """Return the message of one write: with an idempotency key, a batch of one."""
    transaction = within(request, SHARED)
    if once is None:
        plain: PlainOperation[bool] = operation
        return Execute(plain, transaction)
    return Batch((operation,), (), transaction, once)
