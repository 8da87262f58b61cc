"""The operations of a batch: one class each.

The rule: a class holds all that JSON has of an operation of the core. `to_core` returns the core's
operation, `to_json` what the response shows of its result. A new operation is a class here, a member of
`AnyOp`, and what the core does.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from kvactor.api.keys import bounds
from kvactor.api.values import BINARY, JSON, checked_type, item
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


class Op(msgspec.Struct, tag_field="op", forbid_unknown_fields=True, gc=False):
    """An operation, named by the field `op`."""


class PutOp(Op, tag="put"):
    """Store a value: JSON, or with a content type of text a string, or anything in base64."""

    core: ClassVar = Set

    key: str
    value: Raw | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    ttl: Annotated[float, Meta(gt=0, le=MAX_SECONDS, description="seconds")] | None = None

    def to_core(self) -> Set:
        """Return the core's operation. Raises `InvalidRequest`."""
        if (self.value is UNSET) is (self.value_base64 is UNSET):
            raise InvalidRequest("A put has either value or value_base64.")
        ttl = None if self.ttl is None else max(1, int(self.ttl * 1000))
        if self.content_type is UNSET and self.value is not UNSET:
            return Set(self.key.encode(), bytes(self.value), JSON, ttl)
        content_type, value = self._value()
        return Set(self.key.encode(), value, checked_type(content_type, value), ttl)

    def _value(self) -> tuple[str, bytes]:
        if self.value_base64 is not UNSET:
            content_type = BINARY if self.content_type is UNSET else self.content_type
            try:
                return content_type, base64.b64decode(self.value_base64, validate=True)
            except (binascii.Error, ValueError):
                raise InvalidRequest("value_base64 is not base64.") from None
        content_type = str(self.content_type)
        value = bytes(self.value) if self.value is not UNSET else b""
        if content_type.lower().startswith("text/"):
            try:
                return content_type, msgspec.json.decode(value, type=str).encode()
            except msgspec.DecodeError:
                raise InvalidRequest("The value of a put as text is a string.") from None
        return content_type, value

    @staticmethod
    def to_json(operation: Set, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {}


class GetOp(Op, tag="get"):
    """Read a key: its item, or null."""

    core: ClassVar = Get

    key: str

    def to_core(self) -> Get:
        """Return the core's operation."""
        return Get(self.key.encode())

    @staticmethod
    def to_json(operation: Get, result: Any) -> object:
        """Return the result as JSON shows it."""
        return None if result is None else item(operation.key, result)


class DeleteOp(Op, tag="delete"):
    """Delete a key, if it exists."""

    core: ClassVar = Delete

    key: str

    def to_core(self) -> Delete:
        """Return the core's operation."""
        return Delete(self.key.encode())

    @staticmethod
    def to_json(operation: Delete, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"deleted": result}


class IncrementOp(Op, tag="increment"):
    """Add to a key's integer; a missing key counts as 0."""

    core: ClassVar = Increment

    key: str
    by: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 1

    def to_core(self) -> Increment:
        """Return the core's operation."""
        return Increment(self.key.encode(), self.by)

    @staticmethod
    def to_json(operation: Increment, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"value": result}


class RangeOp(Op, tag="range"):
    """Read the keys of a range, in order."""

    core: ClassVar = Range

    prefix: str = ""
    start: str = ""
    end: str | None = None
    limit: Annotated[int, Meta(ge=1)] = 100
    reverse: bool = False

    def to_core(self) -> Range:
        """Return the core's operation."""
        return Range(*bounds(self.prefix, self.start, self.end), self.limit, self.reverse)

    @staticmethod
    def to_json(operation: Range, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"items": [item(key, record) for key, record in result.items], "more": result.more}


class DeleteRangeOp(Op, tag="delete_range"):
    """Delete the keys of a range."""

    core: ClassVar = DeleteRange

    prefix: str = ""
    start: str = ""
    end: str | None = None
    all: bool = False

    def to_core(self) -> DeleteRange:
        """Return the core's operation. Raises `InvalidRequest`."""
        if not (self.all or self.prefix or self.start or self.end is not None):
            raise InvalidRequest("Say which keys: prefix, start, end, or all.")
        return DeleteRange(*bounds(self.prefix, self.start, self.end))

    @staticmethod
    def to_json(operation: DeleteRange, result: Any) -> object:
        """Return the result as JSON shows it."""
        return {"deleted": result}


#: The operations that a batch takes.
AnyOp = PutOp | GetOp | DeleteOp | IncrementOp | RangeOp | DeleteRangeOp

_TO_JSON: dict[type[Operation[Any]], Callable[[Any, Any], object]] = {
    kind.core: kind.to_json for kind in get_args(AnyOp)
}


def to_json(operation: Operation[Any], result: Result) -> object:
    """Return the result of a core's operation as JSON shows it."""
    return _TO_JSON[type(operation)](operation, result)
