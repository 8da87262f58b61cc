"""The dispatcher: the order of its steps, what becomes of errors, and every end of a lease."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from kvactor.actor import StoreActor
from kvactor.core.memory import SMALL, Lease, MemoryAccount
from kvactor.core.messages import Answer, Message, Status
from kvactor.errors import ChecksFailed, KeyNotFound, KvactorError, Overloaded, PreconditionFailed
from kvactor.settings import Settings
from kvactor.web.body_reader import BodyReader
from kvactor.web.dispatcher import Dispatcher
from kvactor.web.guard import RequestGuard
from kvactor.web.http import Exchange, Request, Response
from kvactor.web.routes import Body, Endpoint, Route
from kvactor.web.server import ACCOUNT, ACTOR, TURNSTILE, create_runner
from kvactor.web.steps import Turnstile
from kvactor.web.waits import Deadlines
from tests.web.conftest import message
from tests.web.test_connections import Wire, until

LARGE = 2 * SMALL
GET, HEAD, POST = (message(method, "/route") for method in ("GET", "HEAD", "POST"))


class Recorder(RequestGuard):
    """A guard, and an endpoint's functions, that record their turns."""

    def __init__(self) -> None:
        super().__init__(Settings())
        self.steps: list[str] = []
        self.body = b"whole"
        self.fails: dict[str, Exception] = {}

    def turn(self, step: str) -> None:
        self.steps.append(step)
        if step in self.fails:
            raise self.fails[step]

    def check(self, version: object, target: object, headers: object, form: object) -> None:
        self.turn("guard")

    def parse(self, request: Request) -> Message[Any]:
        self.turn(f"parse {len(request.body)}")
        return Status()

    def encode(self, request: Request, message: Message[Any], answer: Answer[Any]) -> Response:
        self.turn("encode")
        return Response(answer.revision, self.body)


class RecordingDispatcher(Dispatcher):
    """A dispatcher that records when it asks, and fails there if it is told to."""

    steps: Recorder

    def ask(self, request: Request, message: Message[Any], lease: Lease) -> Any:
        self.steps.turn("ask")
        return super().ask(request, message, lease)


class Served:
    """One route, served without a network."""

    def __init__(self, runner: web.AppRunner, actor: StoreActor, account: MemoryAccount) -> None:
        self.runner = runner
        self.requests = actor.metrics.requests
        self.account = account

    def wire(self, data: bytes, *, quick: bool = True) -> Wire:
        return Wire(self.runner, data, quick=quick)

    async def exchange(self, data: bytes) -> tuple[int, bytes]:
        """Return the status and the rest of the response."""
        wire = self.wire(data)
        await until(lambda: b"\r\n\r\n" in wire.taken)
        await until(lambda: self.account.used == 0)
        return int(wire.taken[9:12]), wire.taken[12:]


Serve = Callable[[Route], Any]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def serve(started: StoreActor, settings: Settings, recorder: Recorder) -> Serve:
    @asynccontextmanager
    async def serve(route: Route) -> AsyncIterator[Served]:
        deadlines, account = Deadlines(), MemoryAccount(settings.max_in_flight_size)
        bodies = BodyReader(settings, deadlines)
        turnstile = Turnstile()
        dispatcher = RecordingDispatcher(started, recorder, bodies, account, deadlines, turnstile)
        dispatcher.steps = recorder
        app = web.Application()
        app[ACTOR] = started
        app[ACCOUNT] = account
        app[TURNSTILE] = turnstile
        app.router.add_route("*", route.path, dispatcher.serve(route))
        runner = create_runner(app, settings)
        await runner.setup()
        yield Served(runner, started, account)
        await runner.cleanup()

    return serve


def route(recorder: Recorder, *, method: str = "GET", body: bool = False, **more: Any) -> Route:
    return Route(
        method=method,
        path="/route",
        endpoint=Endpoint(recorder.parse, recorder.encode, **more),
        summary="",
        responses={},
        body=Body({}) if body else None,
    )


# -- the order --


async def test_a_request_is_guarded_parsed_asked_and_encoded_in_this_order(
    serve: Serve, recorder: Recorder
) -> None:
    async with serve(route(recorder)) as served:
        status, rest = await served.exchange(GET)
    assert (status, rest.endswith(b"whole")) == (200, True)
    assert recorder.steps == ["guard", "parse 0", "ask", "encode"]


@pytest.mark.parametrize("step", ["guard", "parse 0", "ask", "encode"])
async def test_a_step_that_refuses_is_the_last_one(serve: Serve, recorder: Recorder, step: str) -> None:
    recorder.fails[step] = Overloaded("Too much.")
    async with serve(route(recorder)) as served:
        status, rest = await served.exchange(GET)
    assert (status, rest.endswith(b'{"error":"Too much."}')) == (503, True)
    assert recorder.steps[-1] == step


@pytest.mark.parametrize(("body", "parsed"), [(True, "parse 7"), (False, "parse 0")])
async def test_a_body_is_read_only_for_a_route_that_has_one(
    serve: Serve, recorder: Recorder, body: bool, parsed: str
) -> None:
    async with serve(route(recorder, method="POST", body=body)) as served:
        await served.exchange(message("POST", "/route", b"1234567"))
    assert recorder.steps[1] == parsed


async def test_a_handler_asks_after_the_guard(serve: Serve, recorder: Recorder) -> None:
    async def handler(exchange: Exchange) -> Response:
        recorder.turn("handler")
        answer = await exchange.ask(Status())
        return Response(answer.revision)

    handled = Route(method="GET", path="/route", endpoint=handler, summary="", responses={})
    async with serve(handled) as served:
        assert (await served.exchange(GET))[0] == 200
    assert recorder.steps == ["guard", "handler", "ask"]


# -- errors --


async def test_an_outcome_that_encode_raises_is_told_at_the_answers_revision(
    serve: Serve, recorder: Recorder, started: StoreActor
) -> None:
    def encode(request: Request, message: Message[Any], answer: Answer[Any]) -> Response:
        started.revision = 9  # another write is durable by now
        raise KeyNotFound("Key not found")

    endpoint = Endpoint(recorder.parse, encode)
    plain = Route(method="GET", path="/route", endpoint=endpoint, summary="", responses={})
    async with serve(plain) as served:
        status, rest = await served.exchange(GET)
    assert status == 404
    assert b"\r\nKvactor-Revision: 0\r\n" in rest


async def test_an_outcome_is_told_as_the_endpoint_explains_it(
    serve: Serve, recorder: Recorder, started: StoreActor
) -> None:
    def explain(error: KvactorError) -> KvactorError:
        return PreconditionFailed("Not so.") if isinstance(error, ChecksFailed) else error

    recorder.fails["ask"] = ChecksFailed("Of a batch.")
    recorder.fails["ask"].revision = 0  # type: ignore[attr-defined]
    async with serve(route(recorder, explain=explain)) as served:
        started.revision = 9
        status, rest = await served.exchange(GET)
    assert (status, rest.endswith(b'{"error":"Not so."}')) == (412, True)
    assert b"\r\nKvactor-Revision: 0\r\n" in rest
    assert started.metrics.errors == {"precondition_failed": 1}


async def test_a_mistake_of_an_encoder_is_a_500_and_nothing_to_the_owner(
    serve: Serve, recorder: Recorder, started: StoreActor, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.fails["encode"] = LookupError("a secret")
    async with serve(route(recorder)) as served:
        status, rest = await served.exchange(GET)
        assert (status, b"secret" in rest) == (500, False)
        recorder.fails.clear()
        assert (await served.exchange(GET))[0] == 200
    assert not started.done.done()
    assert "a secret" in caplog.text


# -- the ends of a lease --


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_large_response_is_sent_once_and_its_connection_kept(
    serve: Serve, recorder: Recorder, method: str
) -> None:
    recorder.body = b"." * LARGE
    async with serve(route(recorder, method=method)) as served:
        wire = served.wire(GET if method == "GET" else HEAD)
        await until(lambda: b"\r\n\r\n" in wire.taken)
        first, wire.taken = wire.taken, b""
        wire.receive(GET if method == "GET" else HEAD)
        await until(lambda: len(wire.taken) == len(first))
        assert first.count(b"HTTP/1.1 200") == 1
        assert first.count(b".") >= LARGE if method == "GET" else first.endswith(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % LARGE in first
        assert not wire.is_closing()
        assert served.account.used == 0


async def test_a_lease_is_held_until_the_response_is_taken(serve: Serve, recorder: Recorder) -> None:
    recorder.body = b"." * LARGE
    async with serve(route(recorder)) as served:
        wire = served.wire(GET, quick=False)
        await until(lambda: wire.size > LARGE)
        assert served.account.used == LARGE
        wire.take()
        await until(lambda: served.account.used == 0)


async def test_a_lease_ends_when_the_connection_is_lost(serve: Serve, recorder: Recorder) -> None:
    recorder.body = b"." * LARGE
    async with serve(route(recorder)) as served:
        wire = served.wire(GET, quick=False)
        await until(lambda: served.account.used == LARGE)
        wire.abort()
        await until(lambda: served.account.used == 0)


async def test_a_lease_ends_when_the_connection_is_lost_before_the_response(
    serve: Serve, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder.body = b"." * LARGE
    gone, go_on = asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange) -> Response:
        gone.set()
        await go_on.wait()
        return Response(0, recorder.body)

    handled = Route(method="GET", path="/route", endpoint=handler, summary="", responses={})
    async with serve(handled) as served:
        wire = served.wire(GET)
        await gone.wait()
        wire.abort()
        await asyncio.sleep(0)
        go_on.set()
        await until(lambda: ("GET", "/route", 200) in served.requests)
        await until(lambda: served.account.used == 0)
    assert wire.taken == b""
    assert not [one for one in caplog.records if one.name.startswith(("aiohttp", "kvactor.web"))]


async def test_a_lease_ends_when_the_request_fails(serve: Serve, recorder: Recorder) -> None:
    body = b"." * LARGE
    recorder.fails[f"parse {LARGE}"] = LookupError("a mistake")
    async with serve(route(recorder, method="POST", body=True)) as served:
        wire = served.wire(message("POST", "/route", body), quick=False)
        await until(lambda: wire.size > 0)
        # Its client has not taken the response yet, but nothing holds the body any more.
        assert served.account.used == 0


async def test_a_lease_ends_when_the_body_breaks_off(serve: Serve, recorder: Recorder) -> None:
    sent = message("POST", "/route", b"." * 2 * LARGE)[:-LARGE]
    async with serve(route(recorder, method="POST", body=True)) as served:
        wire = served.wire(sent)
        await until(lambda: served.account.used > 0)
        wire.abort()
        await until(lambda: served.account.used == 0)
    assert recorder.steps == ["guard"]


@pytest.mark.parametrize("settings", [Settings(shutdown_timeout=0.01, write_timeout=600)])
async def test_a_lease_ends_when_a_stop_cancels_the_request(serve: Serve, recorder: Recorder) -> None:
    recorder.body = b"." * LARGE
    async with serve(route(recorder)) as served:
        served.wire(GET, quick=False)
        await until(lambda: served.account.used == LARGE)
    await until(lambda: served.account.used == 0)


@pytest.mark.parametrize("settings", [Settings(max_in_flight_size=LARGE)])
@pytest.mark.parametrize(("method", "status"), [("GET", 503), ("POST", 200)])
async def test_a_large_response_over_the_budget_is_refused_to_a_read_alone(
    serve: Serve, recorder: Recorder, method: str, status: int
) -> None:
    recorder.body = b"." * LARGE
    async with serve(route(recorder, method=method)) as served:
        first = served.wire(GET, quick=False)
        await until(lambda: served.account.used == LARGE)
        second = served.wire(GET)
        await until(lambda: b"\r\n\r\n" in second.taken)
        assert int(second.taken[9:12]) == status
        first.take()
        await until(lambda: served.account.used == 0)


@pytest.mark.parametrize("settings", [Settings(max_in_flight_size=LARGE)])
async def test_a_request_that_may_have_a_large_response_is_refused_before_it_is_done(
    serve: Serve, recorder: Recorder
) -> None:
    recorder.body = b"." * LARGE
    async with serve(route(recorder, method="POST", large=True)) as served:
        first = served.wire(POST, quick=False)
        await until(lambda: served.account.used == LARGE)
        recorder.steps.clear()
        second = served.wire(POST)
        await until(lambda: second.taken.startswith(b"HTTP/1.1 503"))
        assert recorder.steps == ["guard", "parse 0"]
        first.take()
        await until(lambda: served.account.used == 0)
