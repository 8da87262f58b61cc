"""Reading a request's body, within a deadline and the account of memory."""

import logging

from aiohttp import HttpVersion11, web
from multidict import istr

from kvactor.core.memory import SMALL, Lease
from kvactor.errors import BodyTimeout, BodyTooLarge, InvalidRequest, KvactorError, Stopping
from kvactor.settings import Settings
from kvactor.web.connection import connection_of
from kvactor.web.logs import Digest, shown
from kvactor.web.waits import Deadlines

_TRANSFER_ENCODING = istr("Transfer-Encoding")
_EXPECT = istr("Expect")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: What a read raises: the parser's, aiohttp's when the client is gone, and the connection's.
_FAILURES = (web.RequestPayloadError, ConnectionError, KvactorError)

log = logging.getLogger(__name__)


class BodyReader:
    """Reads bodies, each within `body_timeout`, and none after the server's stop began: from then on
    aiohttp drops the rest of a body.
    """

    def __init__(self, settings: Settings, deadlines: Deadlines) -> None:
        self._timeout = settings.body_timeout
        self._maximum = settings.max_body_size
        self._deadlines = deadlines
        self._broken_off = Digest(log, "a body was broken off")

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
        except _FAILURES as error:
            raise self._broken(request, error) from None
        if len(body) > self._maximum:
            raise self._too_large()
        if len(body) > SMALL:
            lease.acquire(len(body))
        return body

    async def read(self, request: web.Request, lease: Lease) -> bytes:
        """Return a body that is still arriving; the connection counts it on `lease`, chunk by chunk.

        What is known to be too much is refused before the client is told to go on. Raises
        `BodyTooLarge`, `BodyTimeout`, `Overloaded`, `Stopping`, and `InvalidRequest` if it is malformed
        or ends early.
        """
        length = request.content_length or 0
        if length > self._maximum:
            raise self._too_large()
        content, connection = request.content, connection_of(request)
        body = bytearray()
        try:
            async with self._deadlines.limit(self._timeout):
                if request.transport is None:
                    # aiohttp tells only a request that has begun.
                    raise ConnectionResetError("Connection lost")
                if connection is not None:
                    connection.read_by(lease)
                lease.check(length - lease.size)
                if request.version == HttpVersion11 and _EXPECT in request.headers:
                    await request.writer.write(_CONTINUE)
                    # So that aiohttp does not take it for a part of the response.
                    request.writer.output_size = 0
                while piece := await content.readany():
                    body += piece
                    if len(body) > self._maximum:
                        raise self._too_large()
        except TimeoutError:
            error = content.exception()
            if error is not None:
                raise self._broken(request, error) from None
            if self._deadlines.must_end:
                raise Stopping("The server is shutting down. Nothing was done.") from None
            raise BodyTimeout(f"The body has not arrived within {self._timeout:g} s.") from None
        except _FAILURES as error:
            raise self._broken(request, error) from None
        finally:
            if connection is not None:
                connection.is_read()
        # Chunks have held more than the body: their own sizes, or the beginning of the next request.
        lease.resize(len(body))
        return bytes(body)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than max_body_size allows: {self._maximum} bytes.")

    def _broken(self, request: web.Request, error: BaseException) -> KvactorError:
        """Return the outcome for a body whose read has raised `error`."""
        # It leads to the body, and the reader keeps the error: a cycle.
        error.__traceback__ = None
        if isinstance(error, KvactorError):
            return type(error)(*error.args)
        text = shown(" ".join(str(error).split()))
        self._broken_off.add(f"{request.method} {shown(request.raw_path)}: {text}")
        return InvalidRequest(f"The body cannot be read: {text}")
