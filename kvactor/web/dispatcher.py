"""The dispatcher: the one adapter between aiohttp's requests and the endpoints.

In this order: guard, body, parse, ask, encode, account, count, send. The rule: every request gets one
response and is counted once, unless it is cancelled. Its lease of the account of memory is closed when
the response is sent, when the request fails, or when the connection is lost. Everything runs in the
request's own coroutine: an exception in an encoder is a 500, and does not reach the owner.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TypeVar

from aiohttp import HttpVersion11, web
from multidict import istr

from kvactor.actor import StoreActor
from kvactor.core.memory import SMALL, Lease, MemoryAccount
from kvactor.core.messages import Answer, Message
from kvactor.errors import KvactorError, RecordDamaged
from kvactor.web.aiohttp_response import send, to_aiohttp
from kvactor.web.body_reader import BodyReader
from kvactor.web.connection import connection_of, origin_of
from kvactor.web.errors import INTERNAL_ERROR, error_response, status_response
from kvactor.web.guard import Form, RequestGuard
from kvactor.web.http import NO_PARAMETERS, Exchange, NoRoute, Request, Response
from kvactor.web.limits import CHUNK_SIZE
from kvactor.web.logs import shown
from kvactor.web.routes import READS, Endpoint, Handler, Route
from kvactor.web.steps import Steps, Turnstile
from kvactor.web.waits import Deadlines

log = logging.getLogger(__name__)

R = TypeVar("R")

_EXPECT = istr("Expect")

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]
Expect = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


async def _send(source: web.Request, response: Response, time: int) -> web.Response:
    """Send the response, and return when the client has it."""
    sent = to_aiohttp(response, time)
    await send(source, sent)
    return sent


async def _send_and_close(source: web.Request, response: Response) -> web.Response:
    """Send the response to a request whose body will not be read, and end its connection."""
    sent = to_aiohttp(response, response.time)
    sent.force_close()
    await send(source, sent)
    connection = connection_of(source)
    if connection is not None:
        if response.status != HTTPStatus.REQUEST_TIMEOUT:
            # Somebody who has waited for a body long enough waits no longer.
            await connection.linger()
        connection.force_close()
    return sent


def _replace(lease: Lease, response: Response, refuse: bool) -> None:
    """Let a lease hold the response, and nothing that it was made from. Raises `Overloaded`."""
    lease.release()
    if len(response.body) > SMALL:
        lease.acquire(len(response.body), refuse=refuse)


class _Stream:
    """See `Stream`. Its lease holds only what its client has not taken yet."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, dispatcher: "Dispatcher", lease: Lease
    ) -> None:
        self._request = request
        self._response = response
        self._deadlines = dispatcher.deadlines
        self._turnstile = dispatcher.turnstile
        self._lease = lease

    async def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See `Stream`. Of all views together, only a chunk counts."""
        own = sum(len(one) for one in pieces if isinstance(one, bytes))
        shared = sum(len(one) for one in pieces) - own
        size = (own if own > SMALL else 0) + min(shared, CHUNK_SIZE)
        if size:
            self._lease.acquire(size)
        try:
            async with self._deadlines.limit(None):
                for piece in pieces:
                    for start in range(0, len(piece), CHUNK_SIZE):
                        if len(piece) > SMALL:
                            await self._turnstile.pass_through()
                        await self._response.write(piece[start : start + CHUNK_SIZE])
        except ConnectionError as error:
            # As in `send`: its frames and what they wait for hold each other, and the text.
            error.__traceback__ = None
            raise
        finally:
            self._lease.release()

    def abort(self) -> None:
        """See `Stream`."""
        if self._request.transport is not None:
            self._request.transport.abort()


class _Exchange:
    """See `Exchange`."""

    def __init__(
        self, dispatcher: "Dispatcher", request: Request, source: web.Request, lease: Lease
    ) -> None:
        self.request = request
        self.lease = lease
        self._dispatcher = dispatcher
        self._source = source
        #: aiohttp's response of the stream
        self.streamed = web.StreamResponse()

    def ask(self, message: Message[R]) -> Awaitable[Answer[R]]:
        """See `Exchange`."""
        return self._dispatcher.ask(self.request, message, self.lease)

    def take(self, steps: Steps[R]) -> Awaitable[R]:
        """See `Exchange`."""
        return self._dispatcher.turnstile.take(steps, self.lease)

    async def stream(self, headers: Mapping[str, str]) -> _Stream:
        """See `Exchange`."""
        self.streamed.headers.update(headers)
        await self.streamed.prepare(self._source)
        return _Stream(self._source, self.streamed, self._dispatcher, self.lease)


class Dispatcher:
    """Wraps each route's endpoint or handler as a handler of aiohttp's.

    It is no middleware: those would cost every request two more coroutines.
    """

    def __init__(
        self,
        actor: StoreActor,
        guard: RequestGuard,
        bodies: BodyReader,
        account: MemoryAccount,
        deadlines: Deadlines,
        turnstile: Turnstile,
    ) -> None:
        self._actor = actor
        self._clock = actor.metrics.clock
        self._guard = guard
        self._bodies = bodies
        self.account = account
        self.deadlines = deadlines
        #: large chunks of streams, and work in steps
        self.turnstile = turnstile

    def ask(self, request: Request, message: Message[R], lease: Lease) -> Awaitable[Answer[R]]:
        """Ask the owner. Every message passes here, between parse and encode: authorization belongs
        here.
        """
        return self._actor.ask(message, lease)

    def serve(self, route: Route) -> Serve:  # noqa: PLR0915 -- another function would be another call
        """Return aiohttp's handler of a route. The body is read if the route has one."""
        endpoint = route.endpoint
        if not isinstance(endpoint, Endpoint):
            if route.body is not None:
                raise TypeError(f"{route.method} {route.name}: a handler gets no body")
            return self.serve_handler(endpoint, route.method, route.name, route.form)
        check, ask, account = self._guard.check, self.ask, self.account
        nobody = account.nobody
        clock, count = self._clock, self._actor.metrics.counter(route.method, route.name)
        arrived, read, body = self._bodies.arrived, self._bodies.read, route.body is not None
        parse, encode, large = endpoint.parse, endpoint.encode, endpoint.large
        take = self.turnstile.take
        parse_steps, encode_steps = endpoint.parse_steps, endpoint.encode_steps
        # Responses to reads can be refused, because nothing was done.
        method, refuse, form = route.method, route.method in READS, route.form
        # A key is no parameter: it is decoded from the target.
        named = "{id}" in route.name

        async def dispatch(source: web.Request) -> web.StreamResponse:
            began, unread = clock(), False
            connection, head = origin_of(source)
            client = getattr(connection, "client", nobody)
            lease, head_lease = Lease(account, client), None
            try:
                try:
                    if client is not nobody and connection.large_head:
                        head_lease = connection.head_held(head)
                    target, headers = head.path, head.headers
                    check(head.version, target, headers, form)
                    whole = arrived(source, lease) if body else b""
                    content = await read(source, lease) if whole is None else whole
                    parameters = source.match_info if named else NO_PARAMETERS
                    request = Request(method, target, headers, content, parameters)
                    message = (
                        parse(request)
                        if parse_steps is None or len(content) <= SMALL
                        else await take(parse_steps(request), lease)
                    )
                    if large:
                        lease.check(SMALL)
                    answer = await ask(request, message, lease)
                    time = answer.time
                    try:
                        response = (
                            encode(request, message, answer)
                            if encode_steps is None or not lease.size
                            else await take(encode_steps(request, message, answer))
                        )
                    except KvactorError as error:
                        error.revision, error.time = answer.revision, time
                        raise
                    if lease.size or len(response.body) > SMALL:
                        # It takes the place of all that it was made from.
                        del whole, content, request, message, answer
                        _replace(lease, response, refuse)
                except Exception as error:  # noqa: BLE001 -- logged there, unless it is an outcome
                    lease.release()
                    response = self._error(source, error, endpoint.explain)
                    time, unread = response.time, not source.content.is_eof()
                count(response.status, clock() - began)
                if unread:
                    return await _send_and_close(source, response)
                return await _send(source, response, time) if lease.size else to_aiohttp(response, time)
            finally:
                # As `close`, which would be two calls for a request that holds nothing.
                lease.closed = True
                if lease.size:
                    lease.release()
                if head_lease is not None:
                    head_lease.close()

        return dispatch

    def serve_handler(self, handler: Handler, method: str, name: str, form: Form) -> Serve:
        """Return aiohttp's handler of a `Handler`; responses are counted under a method and a name."""
        check, clock = self._guard.check, self._clock
        count, refuse = self._actor.metrics.counter(method, name), method in READS

        async def dispatch(source: web.Request) -> web.StreamResponse:
            began = clock()
            connection, unread = connection_of(source), False
            lease = Lease(
                self.account, self.account.nobody if connection is None else connection.client
            )
            head_lease = None
            try:
                try:
                    if connection is not None and connection.large_head:
                        head_lease = connection.head_held(origin_of(source)[1])
                    check(source.version, source.raw_path, source.headers, form)
                    request = Request(
                        source.method, source.raw_path, source.headers, b"", source.match_info
                    )
                    exchange = _Exchange(self, request, source, lease)
                    response = await handler(exchange)
                    if response is None:
                        count(exchange.streamed.status, clock() - began)
                        return exchange.streamed
                    _replace(lease, response, refuse)
                except Exception as error:  # noqa: BLE001 -- logged there, unless it is an outcome
                    response = self._error(source, error, None)
                    lease.release()
                    unread = not source.content.is_eof()
                count(response.status, clock() - began)
                time = response.time
                if unread:
                    return await _send_and_close(source, response)
                return await _send(source, response, time) if lease.size else to_aiohttp(response, time)
            finally:
                lease.close()
                if head_lease is not None:
                    head_lease.close()

        return dispatch

    def expectations(self) -> Expect:
        """Return aiohttp's handler of requests with `Expect`. It only refuses the unknown: the body
        reader tells a client to go on, once it knows that it will read.
        """

        async def fail(_: Exchange) -> Response:
            raise NoRoute(HTTPStatus.EXPECTATION_FAILED)

        refuse = self.serve_handler(fail, "*", "*", Form(""))

        async def expect(source: web.Request) -> web.StreamResponse | None:
            # HTTP/1.0 has no expectations.
            if source.version != HttpVersion11 or source.headers[_EXPECT].lower() == "100-continue":
                return None
            return await refuse(source)

        return expect

    def _error(
        self,
        source: web.Request,
        error: Exception,
        explain: Callable[[KvactorError], KvactorError] | None,
    ) -> Response:
        """Return the response to an exception."""
        revision = self._actor.revision
        if isinstance(error, KvactorError):
            if isinstance(error, RecordDamaged):
                log.warning("%s Restore it from a backup, or write it anew.", error)
            if explain is not None:
                outcome, error = error, explain(error)
                error.revision, error.time = outcome.revision, outcome.time
            self._actor.metrics.errors[error.code] += 1
            return error_response(source.path, error, revision)
        if isinstance(error, NoRoute):
            status, code = error.status, error.status.name.lower()
            detail = f"{source.method} {shown(source.path)}: {status.phrase}"
            return status_response(source.path, revision, status, code, detail, allow=error.allow)
        target = shown(source.raw_path)
        log.error("%s %s failed by a fault of the server's", source.method, target, exc_info=error)
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        detail = "The server has made a mistake; its log says more."
        return status_response(source.path, revision, status, INTERNAL_ERROR, detail)
