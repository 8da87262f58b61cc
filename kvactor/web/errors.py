"""The one table from errors to statuses, the two shapes in which they are told, and the one place that
catches.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Annotated

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Meta

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.web.answers import answer
from kvactor.web.guard import Door
from kvactor.web.requests import SMALL, Room

log = logging.getLogger(__name__)

STATUS: dict[type[errors.KvactorError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.CrossOrigin: HTTPStatus.FORBIDDEN,
    errors.HostNotAllowed: HTTPStatus.FORBIDDEN,
    errors.KeyAndValueRequired: HTTPStatus.NOT_FOUND,  # that status is the seed's
    errors.InvalidKey: HTTPStatus.BAD_REQUEST,
    errors.ValueTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.BodyTimeout: HTTPStatus.REQUEST_TIMEOUT,
    errors.KeyNotFound: HTTPStatus.NOT_FOUND,
    errors.PreconditionFailed: HTTPStatus.PRECONDITION_FAILED,
    errors.ChecksFailed: HTTPStatus.CONFLICT,
    errors.NotAnInteger: HTTPStatus.CONFLICT,
    errors.BatchTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.RangeTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.AnswerTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.IdempotencyKeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.RecordDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.NoTransaction: HTTPStatus.BAD_REQUEST,
    errors.TransactionNotFound: HTTPStatus.NOT_FOUND,
    errors.TransactionConflict: HTTPStatus.CONFLICT,
    errors.TransactionTooDeep: HTTPStatus.BAD_REQUEST,
    errors.TransactionTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.TooManyTransactions: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.HistoryGone: HTTPStatus.GONE,
    errors.RevisionInFuture: HTTPStatus.BAD_REQUEST,
    errors.TooManySubscribers: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.TooManyConnections: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Stopping: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.WritesStalled: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.OutcomeUnknown: HTTPStatus.INTERNAL_SERVER_ERROR,
}

#: Seconds after which a client that got 503 may try again.
RETRY_AFTER = "1"


#: The code of what is no `KvactorError`, but a fault of the server's.
INTERNAL_ERROR = "internal_error"


class SeedError(msgspec.Struct):
    """An error on the seed's routes."""

    error: Annotated[str, Meta(description="a whole sentence")]


class Problem(msgspec.Struct):
    """An error on /v1, as in RFC 9457. Some codes come with further fields."""

    type: str
    title: str
    status: int
    code: Annotated[str, Meta(description="what a program goes by; does not change")]
    detail: Annotated[str, Meta(description="a whole sentence")]


def in_v1(path: str) -> bool:
    """Are errors on this path problem documents?"""
    return path.startswith("/v1")


def _shape(
    path: str, status: HTTPStatus, code: str, detail: str, details: Mapping[str, object]
) -> tuple[str, bytes]:
    """Return the content type and the body of an error."""
    if in_v1(path):
        problem = msgspec.structs.asdict(Problem("about:blank", status.phrase, status, code, detail))
        return "application/problem+json", msgspec.json.encode({**problem, **details})
    return "application/json", msgspec.json.encode(SeedError(detail))


#: Methods that only read: nothing was done if their answers are refused.
_READS = ("GET", "HEAD")


class Edge:
    """What stands around every handler: the door, the errors, the counting, and the room for answers.

    It does, and not middlewares: those would cost every request two more coroutines.
    """

    def __init__(self, actor: StoreActor, door: Door, room: Room) -> None:
        self._actor = actor
        self._door = door
        self._room = room

    def around(self, handler: Handler, method: str, route: str) -> Handler:
        """Return a handler that answers with what another one raises, and counts the answers of a
        route.
        """
        actor, metrics = self._actor, self._actor.metrics
        clock, count = metrics.clock, metrics.counter(method, route)
        check, take, refuse = self._door.check, self._room.take, method in _READS

        async def catch(request: web.Request) -> web.StreamResponse:
            began = clock()
            try:
                check(request)
                answered = await handler(request)
                if isinstance(answered, web.Response):
                    body = answered.body
                    if isinstance(body, bytes) and len(body) > SMALL:
                        take(len(body), refuse=refuse)
            except errors.KvactorError as error:
                metrics.errors[error.code] += 1
                if isinstance(error, errors.RecordDamaged):
                    log.warning("%s Restore it from a backup, or write it anew.", error)
                answered = refusal(request, error, actor.revision)
            except web.HTTPException as error:
                status = HTTPStatus(error.status)
                detail = f"{request.method} {request.path}: {status.phrase}"
                allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
                answered = _tell(request, actor.revision, status, status.name.lower(), detail, allow)
            except Exception:
                log.exception(
                    "%s %s failed by a fault of the server's", request.method, request.raw_path
                )
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                detail = "The server has made a mistake; its log says more."
                answered = _tell(request, actor.revision, status, INTERNAL_ERROR, detail, {})
            count(answered.status, clock() - began)
            return answered

        return catch


def refusal(request: web.BaseRequest, error: errors.KvactorError, revision: int) -> web.Response:
    """Return the answer that tells an error, as of `revision` unless it knows better."""
    at = revision if error.revision is None else error.revision
    return _tell(request, at, STATUS[type(error)], error.code, str(error), {}, error.details)


def _tell(
    request: web.BaseRequest,
    revision: int,
    status: HTTPStatus,
    code: str,
    detail: str,
    headers: dict[str, str],
    details: Mapping[str, object] = MappingProxyType({}),
) -> web.Response:
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = RETRY_AFTER
    content_type, body = _shape(request.path, status, code, detail, details)
    return answer(revision, body, status, content_type, headers)
