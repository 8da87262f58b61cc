"""The one table from errors to statuses, the two shapes in which they are told, and the one
middleware that catches.
"""

import logging
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.web.answers import answer
from kvactor.web.requests import check_form

log = logging.getLogger(__name__)

STATUS: dict[type[errors.KvactorError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.KeyAndValueRequired: HTTPStatus.NOT_FOUND,  # that status is the seed's
    errors.InvalidKey: HTTPStatus.BAD_REQUEST,
    errors.ValueTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.BodyTimeout: HTTPStatus.REQUEST_TIMEOUT,
    errors.KeyNotFound: HTTPStatus.NOT_FOUND,
    errors.RecordDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.NoTransaction: HTTPStatus.BAD_REQUEST,
    errors.TransactionNotFound: HTTPStatus.NOT_FOUND,
    errors.TransactionConflict: HTTPStatus.CONFLICT,
    errors.TransactionTooDeep: HTTPStatus.BAD_REQUEST,
    errors.TransactionTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.TooManyTransactions: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Stopping: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.OutcomeUnknown: HTTPStatus.INTERNAL_SERVER_ERROR,
}

#: Seconds after which a client that got 503 may try again.
RETRY_AFTER = "1"


def error_middleware(actor: StoreActor) -> Middleware:
    """Return the middleware that turns every exception into an answer: a problem document on /v1,
    the seed's shape elsewhere.
    """

    @web.middleware
    async def catch(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check_form(request)
            return await handler(request)
        except errors.KvactorError as error:
            revision = actor.revision if error.revision is None else error.revision
            if isinstance(error, errors.RecordDamaged):
                log.warning("%s Restore it from a backup, or write it anew.", error)
            return _tell(request, revision, STATUS[type(error)], error.code, str(error))
        except web.HTTPException as error:
            status = HTTPStatus(error.status)
            code = status.name.lower()
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            detail = f"{request.method} {request.path}: {status.phrase}"
            return _tell(request, actor.revision, status, code, detail, allow)
        except Exception:
            log.exception("%s %s failed by a fault of the server's", request.method, request.path)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            return _tell(
                request,
                actor.revision,
                status,
                "internal_error",
                "The server has made a mistake; its log says more.",
            )

    return catch


def _tell(
    request: web.Request,
    revision: int,
    status: HTTPStatus,
    code: str,
    detail: str,
    headers: dict[str, str] | None = None,
) -> web.Response:
    headers = headers or {}
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = RETRY_AFTER
    if not request.path.startswith("/v1"):
        return answer(revision, msgspec.json.encode({"error": detail}), status, headers=headers)
    problem = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    return answer(revision, msgspec.json.encode(problem), status, "application/problem+json", headers)
