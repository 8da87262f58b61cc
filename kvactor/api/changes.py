"""The query and the bodies of /v1/changes."""

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from heapq import merge
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

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


#: Changes that are encoded in one step, and about how many bytes of them: about a millisecond. A larger
#: value is a step of its own.
CHANGES_PER_STEP = 300
BYTES_PER_STEP = 256 * 1024

#: Changes that are sorted in one step.
SORTED_PER_STEP = 2000

#: About what a change of an encoded revision takes beside its text, in bytes: its key and two numbers.
CHANGE_OVERHEAD = 150


#: Lines may end between the tokens of a stored JSON value, but not within a server-sent event's data.
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")

#: A part of a text; views share the memory of the whole.
Piece = bytes | memoryview

#: A key, and its record or None.
Change = tuple[bytes, bytes | None]


class Text(bytearray):
    """A text that lives as long as a view of it. `weakref.finalize` says when it ends."""

    __slots__ = ("__weakref__",)


class EncodedRevision:
    """A revision as the feed shows it: one text, out of which the part of each follower is cut.

    The changes are in key order, so those of a prefix are one piece.
    """

    def __init__(self, revision: Revision) -> None:
        self.number = revision.number
        #: the changes, each with a comma behind it
        self.text = Text()
        self._head = b'{"revision":%d,"time":"%b","changes":[' % (
            revision.number,
            rfc3339(revision.time).encode(),
        )
        self._keys: list[bytes] = []
        #: where the text of each change begins, and where that of the last one ends
        self._places = [0]
        self._view = memoryview(b"")

    @classmethod
    def steps(cls, revision: Revision) -> Generator[None, None, "EncodedRevision"]:
        """Encode a revision in steps: between two, others may be served."""
        one = cls(revision)
        yield from one.encode(revision.changes)
        return one

    def encode(self, changes: Sequence[Change]) -> Generator[None, None, None]:
        """Take in the changes of the revision, in steps."""
        text = self.text
        changes_end, bytes_end = CHANGES_PER_STEP, BYTES_PER_STEP
        for number, (key, record) in enumerate((yield from _in_order(changes))):
            if number >= changes_end or len(text) >= bytes_end:
                changes_end, bytes_end = number + CHANGES_PER_STEP, len(text) + BYTES_PER_STEP
                yield
            if not key.startswith(HIDDEN):
                text += _encoded(key, record)
                text += b","
                self._keys.append(key)
                self._places.append(len(text))
        self._view = memoryview(text).toreadonly()

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.text) + CHANGE_OVERHEAD * len(self._keys)

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
        return [self._head, self._view[self._places[first] : self._places[end] - 1], b"]}"]


def _in_order(changes: Sequence[Change]) -> Generator[None, None, Iterator[Change]]:
    """Sort changes by their keys, in steps."""
    runs = [sorted(changes[:SORTED_PER_STEP])]
    for start in range(SORTED_PER_STEP, len(changes), SORTED_PER_STEP):
        yield
        runs.append(sorted(changes[start : start + SORTED_PER_STEP]))
    return merge(*runs)


def _encoded(key: bytes, record: bytes | None) -> bytes:
    if record is None:
        return encode(Deleted(key.decode()))
    shown = item(key, record)
    text = encode(shown)
    # All else that may have line ends is within strings, where they are escaped.
    return text.translate(_ONE_LINE) if isinstance(shown.value, Raw) else text
