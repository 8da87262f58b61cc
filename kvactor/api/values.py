"""Values as JSON shows them: JSON as it is, text as a string, anything else in base64."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from kvactor.core import records
from kvactor.core.records import NEVER
from kvactor.errors import InvalidRequest

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"

encode = msgspec.json.Encoder().encode


class Item(msgspec.Struct):
    """A key and what is stored under it; the value in one field of two, or in none if not asked for."""

    key: str
    revision: Annotated[int, Meta(ge=0, description="that wrote it; 0 if a transaction is about to")]
    content_type: str
    expires_at: Annotated[str | None, Meta(description="RFC 3339, UTC")] = None
    value: Annotated[
        Raw | str | UnsetType,
        Meta(description="JSON if the content type says so, a string if it is text"),
    ] = UNSET
    value_base64: Annotated[bytes | UnsetType, Meta(description="anything else")] = UNSET


def any_of(*kinds: type[msgspec.Struct]) -> dict[str, object]:
    """Return the JSON Schema of a list of flat structs that nothing but their fields tells apart:
    msgspec itself has none for it.
    """
    schemas = (msgspec.json.schema_components([kind])[1][kind.__name__] for kind in kinds)
    return {"items": {"anyOf": list(schemas)}}


def rfc3339(milliseconds: int) -> str:
    """Return a time, in milliseconds since the epoch, as RFC 3339 has it."""
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def expiry(milliseconds: int) -> str | None:
    """The same of a record's expiry; None for never."""
    return None if milliseconds == NEVER else rfc3339(milliseconds)


def json_value(content_type: str, value: bytes) -> Raw | str | None:
    """Return a value as JSON shows it, or None if that takes base64."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON:
        return Raw(value)
    if kind.startswith("text/"):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return None


def item(key: bytes, record: bytes, *, values: bool = True) -> Item:
    """Return a record as scans, batches and the changes feed show it."""
    taken = records.decode(record)
    shows = Item(key.decode(), taken.revision, taken.content_type, expiry(taken.expires_at))
    if values:
        value = json_value(taken.content_type, taken.value)
        if value is None:
            shows.value_base64 = taken.value
        else:
            shows.value = value
    return shows


_any = msgspec.json.Decoder(Raw)


def check_json(value: bytes) -> None:
    """Raise `InvalidRequest` unless a value is JSON: it is shown within other JSON."""
    try:
        _any.decode(value if value.isascii() else value.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The value is not the JSON that its content type says: {error}") from None


def checked_type(content_type: str, value: bytes) -> str:
    """Return a content type that may be stored with a value. Raises `InvalidRequest`."""
    if not 0 < len(content_type) <= records.MAX_CONTENT_TYPE_SIZE or not (
        content_type.isascii() and content_type.isprintable()
    ):
        raise InvalidRequest(
            f"A content type has 1 to {records.MAX_CONTENT_TYPE_SIZE} printable ASCII characters."
        )
    if content_type.partition(";")[0].strip().lower() == JSON:
        check_json(value)
    return content_type
