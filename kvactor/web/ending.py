"""How a connection ends: with the refusal of what arrives, by its client, or with a stop.

The rule: whoever has asked can read the answer. After something that is refused, nothing more is parsed
or kept: it is dropped, up to a bound in bytes and time, so that a client that is still sending can read
why. A client that has sent its request and then ends its side (a half-closed connection) gets its
response. A stop waits for a connection only while it handles a request.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from kvactor.core.memory import SMALL, Lease
from kvactor.errors import KvactorError
from kvactor.web.aiohttp_response import send, to_aiohttp
from kvactor.web.errors import INTERNAL_ERROR, error_response, status_response
from kvactor.web.logs import shown
from kvactor.web.steps import Turnstile
from kvactor.web.waits import Waits

log = logging.getLogger(__name__)

#: For how many seconds, and bytes, a connection drops what a client still sends after its refusal.
LINGER: Final = 2.0
LINGER_SIZE: Final = 64 * 1024 * 1024


class Refusals(Protocol):
    """What connections have in common when they refuse."""

    turnstile: Turnstile

    @property
    def revision(self) -> int:
        """The newest durable revision, for responses."""

    def refused(self, error: KvactorError) -> None:
        """Count and log a request that could not be read."""


class EndingHandler(web.RequestHandler):
    """A connection that ends as the module says. A stop would wait for one of aiohttp's own also if its
    task has not begun yet, or while it drops the rest of a body.
    """

    __slots__ = ("_arriving", "_dropped", "_head", "_lease", "_lingering", "_server", "waits")

    def __init__(self, server: Refusals, lease: Lease, manager: web.Server, **limits: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **limits)
        self._server = server
        #: what the connection itself holds
        self._lease = lease
        #: bytes of a head under way
        self._head = 0
        #: the body that has not arrived whole; it is that of the newest request
        self._arriving: StreamReader | None = None
        self._dropped = 0
        self._lingering: asyncio.Future[None] | None = None
        self.waits = Waits()

    def _forget_parts(self) -> None:
        """Forget what has arrived and is not parsed yet."""
        raise NotImplementedError

    # -- refusals --

    def _malformed(self, error: KvactorError) -> None:
        self._server.refused(error)
        self._refuse(error)

    def _refuse(self, error: KvactorError) -> None:
        """Answer with an error once all requests before are answered; parse and keep nothing more."""
        self._parser = None
        self._head = 0
        self._forget_parts()
        self._lease.release()
        if self._arriving is not None:
            self._abandon(self._arriving, error)
            return
        self._request_count += 1
        self._messages.append((_ErrInfo(HTTPStatus.BAD_REQUEST, error, ""), EMPTY_PAYLOAD))
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _abandon(self, arriving: StreamReader, error: KvactorError) -> None:
        """Let the request whose body arrives fail, and close the connection after it."""
        self._parser = None
        self._arriving = None
        arriving.set_exception(error)
        arriving.feed_eof()
        if not self._closes_after_last():
            self.close()

    # -- what still arrives --

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_SIZE:
            self._end_lingering()
        elif size > SMALL and (turn := self._server.turnstile.enter()) is not None:
            # Much of all clients together would hold up the loop: one of them is read from in a turn.
            self._pause_transport_reading()
            turn.add_done_callback(lambda _: self._resume_transport_reading())

    async def linger(self) -> None:
        """Drop what the client still sends, within bounds, after it was told all that there is to tell.

        Closed with unread data, a connection is reset, and the client may not see the response.
        """
        transport = self.transport
        self._parser = None
        self._forget_parts()
        if transport is None or transport.is_closing() or self._force_close or self.waits.client_gone:
            return
        with suppress(NotImplementedError, OSError, RuntimeError):
            transport.write_eof()
        self._dropped = 0
        self._lingering = self._loop.create_future()
        self._reading_paused = False
        self._resume_reading_for_buffer()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._lingering
        self._lingering = None

    def _end_lingering(self) -> None:
        if self._lingering is not None and not self._lingering.done():
            self._lingering.set_result(None)

    # -- the end --

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """See aiohttp: let the request finish within so many seconds, and close. What arrives from now
        on is dropped: a client that is still sending has to read its response though sending fails.
        """
        self._end_lingering()
        # A request that has come by now takes two turns of the loop until its handler begins. One was
        # that of the task that this runs in.
        await asyncio.sleep(0)
        if self._task_handler is not None and not self._request_in_progress:
            self._task_handler.cancel()
        await super().shutdown(timeout)

    def eof_received(self) -> bool:  # type: ignore[override] # as asyncio's
        """See asyncio: the client sends no more. True: it still gets a response."""
        self._end_lingering()
        waiter = self._waiter
        idle = waiter is not None and not waiter.done()
        if idle or not self._request_count or self._arriving is not None or self._lingering is not None:
            return False
        self.waits.leave()
        if not self._closes_after_last():
            self.close()
        return True

    def _closes_after_last(self) -> bool:
        """Close after the last request that waits to be turned to. False: none waits."""
        if not self._messages:
            return False
        message, body = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._messages[-1] = (message._replace(should_close=True), body)
        return True

    # -- responses of aiohttp's own --

    def _make_error_handler(
        self, err_info: Any
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def refuse(request: web.BaseRequest) -> web.StreamResponse:
            response = to_aiohttp(error_response("", err_info.exc, self._server.revision), 0)
            response.force_close()
            await send(request, response)
            await self.linger()
            return response

        return refuse

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See aiohttp: the response to a fault of the server's outside of the dispatcher."""
        log.error("%s %s failed", request.method, shown(request.path), exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("A part of the response is sent already.")
        detail = "The server has made a mistake; its log says more."
        error = HTTPStatus.INTERNAL_SERVER_ERROR
        response = to_aiohttp(
            status_response(request.path, self._server.revision, error, INTERNAL_ERROR, detail), 0
        )
        response.force_close()
        return response
