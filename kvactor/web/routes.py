"""Routes: an endpoint or a handler each, and its description.

The application and its description (`openapi`) are made from the same routes, so they agree.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from kvactor import errors
from kvactor.api.values import JSON
from kvactor.core.messages import Answer, Message
from kvactor.errors import KvactorError
from kvactor.web import guard, http
from kvactor.web.errors import in_v1
from kvactor.web.http import Exchange, Request, Response
from kvactor.web.steps import Steps

M = TypeVar("M", bound=Message[Any])
R = TypeVar("R")

Errors = tuple[type[KvactorError], ...]

#: Methods that only read.
READS = ("GET", "HEAD")


class Header(msgspec.Struct, frozen=True):
    """A header of requests or of responses; of requests, with the errors to which it can lead."""

    name: str
    description: str
    type: Any = str
    required: bool = False
    errors: Errors = ()


class Body(msgspec.Struct, frozen=True):
    """A request's body: a type for each content type (bytes: anything)."""

    content: Mapping[str, Any]
    required: bool = True
    errors: Errors = (errors.BodyTooLarge, errors.BodyTimeout, errors.UnsupportedEncoding)


class ResponseSpec(msgspec.Struct, frozen=True):
    """A response: its meaning, its body as a type for each content type, and its headers."""

    description: str
    content: Mapping[str, Any] = {}
    headers: tuple[Header, ...] = ()


class Endpoint(msgspec.Struct, Generic[M, R], frozen=True):
    """One message and one answer, as pure functions.

    `encode` gets the message beside the request, so that nothing is parsed twice; an error that it
    raises is an outcome at the answer's revision. `parse_steps` and `encode_steps` do the same in
    steps, for large bodies: between two, others are served. `explain` turns an error of the core into
    the HTTP API's. `large`: the response may be large, and cannot be refused once the owner has done
    the work, so the account of memory is checked before.
    """

    parse: Callable[[Request], M]
    encode: Callable[[Request, M, Answer[R]], Response]
    explain: Callable[[KvactorError], KvactorError] | None = None
    large: bool = False
    parse_steps: Callable[[Request], Steps[M]] | None = None
    encode_steps: Callable[[Request, M, Answer[R]], Steps[Response]] | None = None


#: Serves a route that asks more than once, or not at all. It returns None after a stream.
Handler = Callable[[Exchange], Awaitable[Response | None]]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A method on a path. Errors that every route has, or that come with a header or a body, are not
    listed again.
    """

    method: str
    path: str
    endpoint: Endpoint[Any, Any] | Handler
    summary: str
    responses: Mapping[int, ResponseSpec]
    errors: Errors = ()
    headers: tuple[Header, ...] = ()
    query: type[msgspec.Struct] | None = None
    #: upper bounds of the query's fields that are settings, by name
    maximums: Mapping[str, int] = {}
    #: without it, the request's body is not read
    body: Body | None = None
    #: whether the owner is asked, which may be overloaded, be stopping, or have failed
    asks: bool = True
    #: whether pages of other origins may link to it
    page: bool = False

    @property
    def name(self) -> str:
        """The path without its regular expressions."""
        return re.sub(r":[^}]*", "", self.path)

    @property
    def form(self) -> guard.Form:
        """What its requests may look like."""
        names = {header.name.lower() for header in self.headers}
        if self.method in READS:
            # Without an entity tag to compare, `If-None-Match` always holds.
            names.add("if-none-match")
        return guard.Form(
            f"{self.method} {self.name}",
            guard.DECISIVE & names,
            # The simple routes ignore a query, as they always have.
            query=self.query is not None or not in_v1(self.path),
            body=self.body is not None,
            page=self.page,
        )

    def head(self) -> "Route":
        """The same route for HEAD, whose responses have no bodies."""
        bare = {
            status: msgspec.structs.replace(spec, content=dict.fromkeys(spec.content))
            for status, spec in self.responses.items()
        }
        return msgspec.structs.replace(self, method="HEAD", responses=bare)


def json_spec(kind: Any, description: str = "Done", *headers: Header) -> ResponseSpec:
    """Return a response whose body is JSON."""
    return ResponseSpec(description, {JSON: kind}, headers)


#: Wherever the owner is asked.
OWNER_ERRORS: Errors = (errors.Overloaded, errors.Stopping, errors.OutcomeUnknown)
#: Wherever something is written.
WRITE_ERRORS: Errors = (
    errors.StorageFull,
    errors.WritesStalled,
    errors.TransactionTooLarge,
    errors.RecordDamaged,
)
#: In a transaction.
TRANSACTION_ERRORS: Errors = (errors.TransactionNotFound, errors.TransactionConflict)

_Tags = Annotated[str, Meta(examples=['"7"', "*"])]

# -- headers of requests --

TRANSACTION = Header(
    str(http.TRANSACTION),
    "The isolated transaction that the request belongs to.",
    errors=(*TRANSACTION_ERRORS, errors.TransactionTooLarge, errors.RequestTooExpensive),
)
IDEMPOTENCY_KEY = Header(
    str(http.IDEMPOTENCY_KEY),
    "The server keeps the first response under this key and repeats it: the request is done once, "
    "however often it is sent.",
    Annotated[str, Meta(min_length=1, max_length=http.MAX_IDEMPOTENCY_KEY)],
    errors=(errors.IdempotencyKeyReused,),
)
IF_MATCH = Header(
    str(http.IF_MATCH),
    "Only if the key exists with one of these entity tags; `*`: with any.",
    _Tags,
    errors=(errors.PreconditionFailed,),
)
IF_ABSENT = Header(
    str(http.IF_NONE_MATCH),
    "`*`: only if the key does not exist.",
    Annotated[str, Meta(pattern=r"^\*$")],
    errors=(errors.PreconditionFailed,),
)
IF_CHANGED = Header(str(http.IF_NONE_MATCH), "304 if the key has one of these entity tags.", _Tags)
LAST_EVENT_ID = Header(
    "Last-Event-ID",
    "Of server-sent events: continue after this revision; wins over `since`.",
    Annotated[int, Meta(ge=0)],
)

# -- headers of responses --

REVISION_HEADER = Header(
    str(http.REVISION),
    "The revision of the store at which this was true.",
    Annotated[int, Meta(ge=0)],
    required=True,
)
ETAG = Header(
    "ETag",
    "The revision that wrote the key, in quotes; within a transaction, a tag of its draft.",
    _Tags,
    required=True,
)
NEW_TAG = Header("ETag", "The entity tag of the new value; missing within a transaction.", _Tags)
LOCATION = Header("Location", "The new resource.", required=True)
LINK = Header("Link", 'The next page: `rel="next"`.')
EXPIRES_AT = Header("Kvactor-Expires-At", "When the key expires: RFC 3339, UTC.")
VARY = Header("Vary", f"Always `{http.TRANSACTION}`.", required=True)
RETRY_AFTER = Header(
    "Retry-After", "Seconds to wait before another try.", Annotated[int, Meta(ge=0)], required=True
)


def constant_headers(headers: Mapping[str, str]) -> tuple[Header, ...]:
    """Return the specifications of headers whose values never change."""
    return tuple(
        Header(str(name), f"Always `{text}`.", required=True) for name, text in headers.items()
    )
