"""What a route is: all that is known of it, beside its handler.

The application is made of these and so is its description (`openapi`), so that neither can have what
the other has not.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Meta

from kvactor import errors
from kvactor.errors import KvactorError
from kvactor.web.answers import REVISION, TRANSACTION
from kvactor.web.requests import IDEMPOTENCY_KEY, MAX_IDEMPOTENCY_KEY
from kvactor.web.values import JSON

Errors = tuple[type[KvactorError], ...]


class Header(msgspec.Struct, frozen=True):
    """A header of requests or of answers; of requests, with the errors to which it can lead."""

    name: str
    description: str
    type: Any = str
    required: bool = False
    errors: Errors = ()


class Body(msgspec.Struct, frozen=True):
    """What a request carries: a type for each content type (bytes: anything)."""

    content: Mapping[str, Any]
    required: bool = True
    errors: Errors = (errors.BodyTooLarge, errors.BodyTimeout)


class Reply(msgspec.Struct, frozen=True):
    """An answer: what it means, its body as a type for each content type, and its headers."""

    description: str
    content: Mapping[str, Any] = {}
    headers: tuple[Header, ...] = ()


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A method on a path. Errors that every route has, or that come with a header or a body, are not
    listed again.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Reply]
    errors: Errors = ()
    headers: tuple[Header, ...] = ()
    query: type[msgspec.Struct] | None = None
    #: upper bounds of what the query says that are settings, by name
    most: Mapping[str, int] = {}
    body: Body | None = None
    #: whether the owner is asked, which may be overloaded, be stopping, or have failed
    asks: bool = True

    @property
    def name(self) -> str:
        """The path without its regular expressions."""
        return re.sub(r":[^}]*", "", self.path)

    def head(self) -> "Route":
        """The same route for HEAD, which answers without bodies."""
        bare = {
            status: msgspec.structs.replace(reply, content=dict.fromkeys(reply.content))
            for status, reply in self.answers.items()
        }
        return msgspec.structs.replace(self, method="HEAD", answers=bare)


#: The routes of an application, in families by name.
FAMILIES = web.AppKey("families", Mapping[str, Sequence[Route]])


def said(kind: Any, description: str = "Done.", *headers: Header) -> Reply:
    """Return an answer in JSON."""
    return Reply(description, {JSON: kind}, headers)


#: What can go wrong wherever the owner is asked.
ASKING: Errors = (errors.Overloaded, errors.Stopping, errors.OutcomeUnknown)
#: What can go wrong where something is written.
WRITING: Errors = (
    errors.StorageFull,
    errors.WritesStalled,
    errors.TransactionTooLarge,
    errors.RecordDamaged,
)
#: What can go wrong in a transaction.
GONE: Errors = (errors.TransactionNotFound, errors.TransactionConflict)

_Tags = Annotated[str, Meta(examples=['"7"', "*"])]

# -- headers of requests --

WITHIN = Header(
    str(TRANSACTION),
    "The isolated transaction in which the request speaks.",
    errors=(*GONE, errors.TransactionTooLarge),
)
ONCE = Header(
    str(IDEMPOTENCY_KEY),
    "The first answer under this key is kept, and repeated: the request is done once, however "
    "often it is sent.",
    Annotated[str, Meta(min_length=1, max_length=MAX_IDEMPOTENCY_KEY)],
    errors=(errors.IdempotencyKeyReused,),
)
IF_MATCH = Header(
    "If-Match",
    "Only if the key is there with one of these entity tags; `*`: with any.",
    _Tags,
    errors=(errors.PreconditionFailed,),
)
IF_ABSENT = Header(
    "If-None-Match",
    "`*`: only if the key is not there.",
    Annotated[str, Meta(pattern=r"^\*$")],
    errors=(errors.PreconditionFailed,),
)
IF_CHANGED = Header("If-None-Match", "304 if the key has one of these entity tags.", _Tags)
LAST_EVENT_ID = Header(
    "Last-Event-ID",
    "Of server-sent events: go on after this revision; wins over `since`.",
    Annotated[int, Meta(ge=0)],
)

# -- headers of answers --

AT = Header(
    str(REVISION),
    "The revision of the store at which this was true.",
    Annotated[int, Meta(ge=0)],
    required=True,
)
ETAG = Header("ETag", "The revision that wrote the key, in quotes.", _Tags, required=True)
NEW_TAG = Header("ETag", "The same of what was written; missing within a transaction.", _Tags)
LOCATION = Header("Location", "Where it is.", required=True)
LINK = Header("Link", 'The next page: `rel="next"`.')
EXPIRES_AT = Header("Kvactor-Expires-At", "When the key ends by itself: RFC 3339, UTC.")
RETRY_AFTER = Header(
    "Retry-After", "Seconds after which to try again.", Annotated[int, Meta(ge=0)], required=True
)


def always(headers: Mapping[str, str]) -> tuple[Header, ...]:
    """Return headers that never change."""
    return tuple(Header(name, f"Always `{text}`.", required=True) for name, text in headers.items())
