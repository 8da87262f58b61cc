"""Reading a request's body, within a deadline and the account of memory."""

import logging

from aiohttp import web
from multidict import istr

from kvactor.core.memory import SMALL, Lease
from kvactor.errors import BodyTimeout, BodyTooLarge, InvalidRequest, Stopping
from kvactor.settings import Settings
from kvactor.web.limits import Deadlines

log = logging.getLogger(__name__)

_TRANSFER_ENCODING = istr("Transfer-Encoding")


class BodyReader:
    """Reads bodies, each within `body_timeout`, and none after the server's stop began: from then on
    aiohttp drops the rest of a body.
    """

    def __init__(self, settings: Settings, deadlines: Deadlines) -> None:
        self._timeout = settings.body_timeout
        self._maximum = settings.max_body_size
        self._deadlines = deadlines

    def arrived(self, request: web.Request, lease: Lease) -> bytes | None:
        """Return the body if it is there already, as that of a small request is, or None.

        Raises `BodyTooLarge`, `Overloaded`, and `InvalidRequest` if it is malformed.
        """
        if request.headers.get(_TRANSFER_ENCODING, "chunked").lower() != "chunked":
            raise InvalidRequest("A body may be chunked; no other transfer coding is understood.")
        content = request.content
        if not content.is_eof():
            return None
        try:
            body = content.read_nowait()
        except (web.RequestPayloadError, ConnectionError) as error:
            raise _broken(request, error) from None
        if len(body) > self._maximum:
            raise self._too_large()
        if len(body) > SMALL:
            lease.acquire(len(body))
        return body

    async def read(self, request: web.Request, lease: Lease) -> bytes:
        """Return a body that is still arriving; `lease` grows with it.

        Raises `BodyTooLarge`, `BodyTimeout`, `Overloaded`, `Stopping`, and `InvalidRequest` if it is
        malformed or ends early.
        """
        content = request.content
        body, counted = bytearray(), 0
        try:
            async with self._deadlines.limit(self._timeout):
                while piece := await content.readany():
                    body += piece
                    if len(body) > self._maximum:
                        raise self._too_large()
                    if len(body) - counted > SMALL:
                        lease.acquire(len(body) - counted)
                        counted = len(body)
        except TimeoutError:
            if self._deadlines.stopping:
                raise Stopping("The server is shutting down. Nothing was done.") from None
            raise BodyTimeout(f"The body has not arrived within {self._timeout:g} s.") from None
        except (web.RequestPayloadError, ConnectionError) as error:
            raise _broken(request, error) from None
        return bytes(body)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than max_body_size allows: {self._maximum} bytes.")


def _broken(request: web.Request, error: Exception) -> InvalidRequest:
    log.info("the body of %s %s was broken off: %s", request.method, request.raw_path, error)
    return InvalidRequest(f"The body cannot be read: {error}")
