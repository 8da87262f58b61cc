"""Bodies of the simple routes."""

import msgspec
from msgspec import UNSET, UnsetType


class SetBody(msgspec.Struct):
    """The body of POST /set. A missing field is told apart from a wrong one."""

    key: str | None = None
    value: msgspec.Raw | UnsetType = UNSET


class StatusBody(msgspec.Struct):
    """The outcome of a write or of a step of a transaction."""

    status: str


class KeyValue(msgspec.Struct):
    """A key and its value; the value is in base64 if it is neither JSON nor text."""

    key: str
    value: msgspec.Raw | str | UnsetType = UNSET
    value_base64: bytes | UnsetType = UNSET
