"""Many operations as one: POST /v1/batch."""

import base64
import binascii
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Raw, UnsetType

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.core.messages import AUTOCOMMIT, Batch, Check, Presence
from kvactor.core.operations import (
    Delete,
    DeleteRange,
    Get,
    Increment,
    Operation,
    Range,
    Result,
    Set,
)
from kvactor.errors import InvalidRequest
from kvactor.settings import MAX_SECONDS
from kvactor.web.answers import answer
from kvactor.web.requests import SMALL, Bodies, Room, once_of, parse, within
from kvactor.web.routes import ONCE, WITHIN, WRITING, Body, Route, said
from kvactor.web.v1.ranges import RangeQuery
from kvactor.web.values import BINARY, JSON, checked_type, encode, item


class BatchCheck(msgspec.Struct, forbid_unknown_fields=True):
    """A key, and the revision that it has to have; null: it must not be there."""

    key: str
    revision: Annotated[int, Meta(ge=0)] | None

    def message(self) -> Check:
        """Return the same as a message has it."""
        expected = Presence.ABSENT if self.revision is None else (self.revision,)
        return Check(self.key.encode(), expected)


class _Operation(msgspec.Struct, tag_field="op", forbid_unknown_fields=True):
    """What the operations have in common: each is a message, and tells its result as JSON shows it."""


class Put(_Operation, tag="put"):
    """Give a key a value: JSON, or with a content type of text a string, or anything in base64."""

    key: str
    value: Raw | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    ttl: Annotated[float, Meta(gt=0, le=MAX_SECONDS, description="seconds")] | None = None

    def message(self) -> Operation[Any]:
        """Return the message."""
        if (self.value is UNSET) is (self.value_base64 is UNSET):
            raise InvalidRequest("A put has either value or value_base64.")
        ttl = None if self.ttl is None else max(1, int(self.ttl * 1000))
        if self.content_type is UNSET and self.value is not UNSET:
            return Set(self.key.encode(), bytes(self.value), JSON, ttl)
        kind, value = self._value()
        return Set(self.key.encode(), value, checked_type(kind, value), ttl)

    def _value(self) -> tuple[str, bytes]:
        if self.value_base64 is not UNSET:
            kind = BINARY if self.content_type is UNSET else self.content_type
            try:
                return kind, base64.b64decode(self.value_base64, validate=True)
            except (binascii.Error, ValueError):
                raise InvalidRequest("value_base64 is not base64.") from None
        kind, value = str(self.content_type), bytes(self.value) if self.value is not UNSET else b""
        if kind.lower().startswith("text/"):
            try:
                return kind, msgspec.json.decode(value, type=str).encode()
            except msgspec.DecodeError:
                raise InvalidRequest("The value of a put as text is a string.") from None
        return kind, value

    def told(self, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {}


class GetOne(_Operation, tag="get"):
    """Read a key: its item, or null."""

    key: str

    def message(self) -> Operation[Any]:
        """Return the message."""
        return Get(self.key.encode())

    def told(self, result: Any) -> object:
        """Return the result as JSON shows it."""
        return None if result is None else item(self.key.encode(), result)


class DeleteOne(_Operation, tag="delete"):
    """Remove a key, if it is there."""

    key: str

    def message(self) -> Operation[Any]:
        """Return the message."""
        return Delete(self.key.encode())

    def told(self, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"deleted": result}


class Add(_Operation, tag="increment"):
    """Add to a key's integer; a missing one is 0."""

    key: str
    by: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 1

    def message(self) -> Operation[Any]:
        """Return the message."""
        return Increment(self.key.encode(), self.by)

    def told(self, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"value": result}


class Ranged(_Operation):
    """What the operations on ranges have in common."""

    prefix: str = ""
    start: str = ""
    end: str | None = None

    def bounds(self) -> tuple[bytes, bytes | None]:
        """Return the first key, and the one behind the last (None: to the end)."""
        return RangeQuery(self.prefix, self.start, self.end).bounds()


class Scan(Ranged, tag="range"):
    """Read the keys of a range, in order."""

    limit: Annotated[int, Meta(ge=1)] = 100
    reverse: bool = False

    def message(self) -> Operation[Any]:
        """Return the message."""
        return Range(*self.bounds(), self.limit, self.reverse)

    def told(self, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"items": [item(key, record) for key, record in result.items], "more": result.more}


class Clear(Ranged, tag="delete_range"):
    """Remove the keys of a range."""

    all: bool = False

    def message(self) -> Operation[Any]:
        """Return the message."""
        if not (self.all or self.prefix or self.start or self.end is not None):
            raise InvalidRequest("Say which keys: prefix, start, end, or all.")
        return DeleteRange(*self.bounds())

    def told(self, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"deleted": result}


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/batch."""

    operations: list[Put | GetOne | DeleteOne | Add | Scan | Clear]
    checks: list[BatchCheck] = []


class Done(msgspec.Struct):
    """What POST /v1/batch answers."""

    revision: Annotated[
        int | None, Meta(description="that was made; null if nothing was changed, or not yet")
    ]
    results: Annotated[list[Any], Meta(description="one for each operation, in order")]


class BatchRoutes:
    """A handler that parses, asks and encodes."""

    def __init__(self, actor: StoreActor, bodies: Bodies, room: Room) -> None:
        self._ask = actor.ask
        self._room = room
        self._body_of = bodies.read
        self._decoder = msgspec.json.Decoder(BatchBody)

    def routes(self) -> list[Route]:
        """Return the route."""
        return [
            Route(
                method="POST",
                path="/v1/batch",
                handler=self.batch,
                summary="Do many operations as one, in order, if all checks hold",
                headers=(WITHIN, ONCE),
                body=Body({JSON: BatchBody}),
                answers={200: said(Done)},
                errors=(
                    errors.ChecksFailed,
                    errors.InvalidKey,
                    errors.NotAnInteger,
                    errors.ValueTooLarge,
                    errors.BatchTooLarge,
                    errors.RangeTooLarge,
                    errors.AnswerTooLarge,
                    *WRITING,
                ),
            )
        ]

    async def batch(self, request: web.Request) -> web.Response:
        """POST /v1/batch."""
        text = await self._body_of(request)
        body = parse(self._decoder, text)
        operations: list[Operation[Any]] = []
        for index, operation in enumerate(body.operations):
            try:
                operations.append(operation.message())
            except InvalidRequest as error:
                error.details = {"operation": index}
                raise
        asked = Batch(
            tuple(operations),
            tuple(check.message() for check in body.checks),
            within(request, AUTOCOMMIT),
            once_of(request, text),
        )
        # Its results may be large, and then it is too late to refuse them.
        self._room.check(SMALL)
        done = await self._ask(asked)
        results: list[Result] = done.result.results
        told = [
            operation.told(result) for operation, result in zip(body.operations, results, strict=True)
        ]
        return answer(done.revision, encode(Done(done.result.revision or None, told)))
