"""Queries and bodies of /v1/kv."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kvactor.api.values import Item
from kvactor.settings import MAX_SECONDS


class PutQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The query of PUT."""

    ttl: (
        Annotated[float, Meta(gt=0, le=MAX_SECONDS, description="seconds until the key expires")] | None
    ) = None


class Written(msgspec.Struct):
    """The response to PUT /v1/kv/{key} and DELETE /v1/kv."""

    revision: Annotated[
        int | None,
        Meta(description="of this write; null if it deleted nothing, or within a transaction"),
    ]
    deleted: Annotated[int | UnsetType, Meta(description="number of keys")] = UNSET


class RangeQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A range of keys."""

    prefix: Annotated[str, Meta(description="keys that begin with this")] = ""
    start: Annotated[str, Meta(description="keys from this one on")] = ""
    end: Annotated[str | None, Meta(description="keys before this one")] = None


class ScanQuery(RangeQuery, forbid_unknown_fields=True):
    """A range of keys, and how to page through it."""

    limit: Annotated[int, Meta(ge=1, description="keys in a page; max_scan_limit at most")] = 100
    cursor: Annotated[str | None, Meta(description="where the previous page ended")] = None
    reverse: Annotated[bool, Meta(description="the last key first")] = False
    values: Annotated[bool, Meta(description="false: keys without their values")] = True


class DeleteQuery(RangeQuery, forbid_unknown_fields=True):
    """A range of keys to delete."""

    all: Annotated[bool, Meta(description="required if nothing else names a range")] = False


class Items(msgspec.Struct):
    """A page of a scan."""

    items: list[Item]
    cursor: Annotated[str | None, Meta(description="continues after this page; null: no more keys")]
    revision: Annotated[
        int,
        Meta(description="following the changes from here on misses nothing that is not in the page"),
    ]


def bounds(prefix: str, start: str, end: str | None) -> tuple[bytes, bytes | None]:
    """Return the first key of a range, and the key behind the last (None: to the end)."""
    first, last = prefix.encode(), None
    if first:
        # No byte of UTF-8 is 255.
        last = first[:-1] + bytes([first[-1] + 1])
    if end is not None:
        last = end.encode() if last is None else min(last, end.encode())
    return max(first, start.encode()), last
