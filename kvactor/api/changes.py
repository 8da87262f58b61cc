"""The query and the bodies of /v1/changes."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kvactor.api.values import Item, any_of, item, rfc3339
from kvactor.core.records import HIDDEN, Revision


class ChangesQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Which changes."""

    since: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["now"],
        Meta(description="revisions after this one; 0: from the first; now: only new ones"),
    ] = 0
    prefix: Annotated[str, Meta(description="changes of keys that begin with this")] = ""
    limit: Annotated[int, Meta(ge=1, le=1000, description="revisions to read for a page")] = 100
    wait: Annotated[
        float, Meta(ge=0, le=300, description="seconds to wait if there are none (a long poll)")
    ] = 0


class Deleted(msgspec.Struct):
    """A key that was deleted or has expired."""

    key: str
    deleted: bool = True


class Event(msgspec.Struct):
    """One revision, whole."""

    revision: int
    time: Annotated[str, Meta(description="of the write: RFC 3339, UTC")]
    changes: Annotated[list[Any], Meta(extra_json_schema=any_of(Item, Deleted))]


class ChangesPage(msgspec.Struct):
    """The response to GET /v1/changes."""

    revisions: list[Event]
    since: Annotated[int, Meta(description="continue from here")]


def event(revision: Revision, prefix: bytes = b"") -> Event:
    """Return a revision as the feed shows it: its changes of keys that begin with `prefix`."""
    return Event(
        revision.number,
        rfc3339(revision.time),
        [
            Deleted(key.decode()) if record is None else item(key, record)
            for key, record in revision.changes
            if key.startswith(prefix) and not key.startswith(HIDDEN)
        ],
    )


def events(revisions: Sequence[Revision], prefix: bytes) -> list[Event]:
    """Return revisions as the feed shows them; with a prefix, only those that change such a key."""
    shown = (event(revision, prefix) for revision in revisions)
    return [one for one in shown if one.changes or not prefix]
