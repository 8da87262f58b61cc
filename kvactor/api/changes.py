"""The query and the bodies of /v1/changes."""

from bisect import bisect_left, bisect_right
from collections.abc import Generator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kvactor.api.values import Item, any_of, encode, item, rfc3339
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


#: Changes that are encoded in one step: about a millisecond.
CHANGES_PER_STEP = 300

#: About what a change of an encoded revision takes beside its text, in bytes: its key and two numbers.
CHANGE_OVERHEAD = 150


#: Lines may end between the tokens of a stored JSON value, but not within a server-sent event's data.
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")

#: A part of a text; views share the memory of the whole.
Piece = bytes | memoryview


class EncodedRevision:
    """A revision as the feed shows it: one text, out of which the part of each follower is cut.

    The changes are in key order, so those of a prefix are one piece.
    """

    def __init__(self, revision: Revision) -> None:
        self.number = revision.number
        self._head = b'{"revision":%d,"time":"%b","changes":[' % (
            revision.number,
            rfc3339(revision.time).encode(),
        )
        self._keys: list[bytes] = []
        #: where the text of each change begins, and where that of the last one ends
        self._places = [0]
        self._text = memoryview(b"")

    @classmethod
    def steps(cls, revision: Revision) -> Generator[None, None, "EncodedRevision"]:
        """Encode a revision in steps of `CHANGES_PER_STEP`: between two, others may be served."""
        one = cls(revision)
        yield from one.encode(revision)
        return one

    def encode(self, revision: Revision) -> Generator[None, None, None]:
        """Take in the changes of a revision, in steps."""
        text = bytearray()
        for number, (key, record) in enumerate(sorted(revision.changes)):
            if number % CHANGES_PER_STEP == CHANGES_PER_STEP - 1:
                yield
            if not key.startswith(HIDDEN):
                shown = Deleted(key.decode()) if record is None else item(key, record)
                text += encode(shown) + b","
                self._keys.append(key)
                self._places.append(len(text))
        self._text = memoryview(text.translate(_ONE_LINE)).toreadonly()

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self._text) + CHANGE_OVERHEAD * len(self._keys)

    def cut(self, prefix: bytes) -> list[Piece]:
        """Return the revision with its changes of keys that begin with `prefix`, in pieces of JSON.
        With a prefix, there are none if there is no such change.

        Costs O(log n) for n changes: nothing is copied.
        """
        keys, length = self._keys, len(prefix)
        first = bisect_left(keys, prefix)
        end = bisect_right(keys, prefix, first, key=lambda key: key[:length]) if prefix else len(keys)
        if first == end:
            return [] if prefix else [self._head, b"]}"]
        return [self._head, self._text[self._places[first] : self._places[end] - 1], b"]}"]
