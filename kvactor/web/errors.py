"""The one table from errors to statuses, and the two shapes of an error's response."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

import msgspec

from kvactor import errors
from kvactor.api.errors import Problem, SimpleError
from kvactor.api.values import JSON, encode
from kvactor.web.http import TRANSACTION, Response

STATUS: dict[type[errors.KvactorError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.CrossOrigin: HTTPStatus.FORBIDDEN,
    errors.HostNotAllowed: HTTPStatus.FORBIDDEN,
    errors.KeyAndValueRequired: HTTPStatus.NOT_FOUND,  # as the simple routes promise
    errors.InvalidKey: HTTPStatus.BAD_REQUEST,
    errors.ValueTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedEncoding: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.BodyTimeout: HTTPStatus.REQUEST_TIMEOUT,
    errors.RequestTooExpensive: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
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

#: The code of any other exception: a fault of the server.
INTERNAL_ERROR = "internal_error"

PROBLEM_JSON = "application/problem+json"

#: Characters of an error's sentence, at most: it may quote what the client has sent.
MAX_DETAIL = 1000
_NOTHING: Mapping[str, object] = MappingProxyType({})


#: The routes for monitoring beside `/v1/status`.
_MONITORING = frozenset({"/healthz", "/readyz", "/metrics"})


def in_v1(path: str) -> bool:
    """Is this path under `/v1`?"""
    return path.startswith("/v1")


def has_problems(path: str) -> bool:
    """Are errors on this path problem documents?"""
    return in_v1(path) or path in _MONITORING


def error_response(path: str, error: errors.KvactorError, revision: int) -> Response:
    """Return an error's response, true at the error's own revision or else at `revision`."""
    at = revision if error.revision is None else error.revision
    return status_response(
        path, at, STATUS[type(error)], error.code, str(error), error.details, time=error.time or 0
    )


def status_response(
    path: str,
    revision: int,
    status: HTTPStatus,
    code: str,
    detail: str,
    details: Mapping[str, object] = _NOTHING,
    allow: str = "",
    time: int = 0,
) -> Response:
    """Return an error's response in the shape that belongs to its path; `allow` is that header, if not
    empty. `detail` may quote what is no Unicode.
    """
    headers = {"Allow": allow} if allow else {}
    detail = detail[:MAX_DETAIL].encode(errors="replace").decode()
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = RETRY_AFTER
    if in_v1(path):
        headers["Vary"] = TRANSACTION
    if has_problems(path):
        problem = msgspec.structs.asdict(Problem("about:blank", status.phrase, status, code, detail))
        return Response(revision, encode({**problem, **details}), status, PROBLEM_JSON, headers, time)
    return Response(revision, encode(SimpleError(detail)), status, JSON, headers, time)
