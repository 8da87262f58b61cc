"""What arrives on a connection: how much is kept, where it counts, and what becomes of the rest."""

import asyncio
import gc
import logging
import re
import select
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from kvactor.actor import StoreActor
from kvactor.core.memory import SMALL, Lease, MemoryAccount
from kvactor.settings import Settings
from kvactor.web.connection import MAX_HEAD, QUEUE
from kvactor.web.ending import LINGER_SIZE
from kvactor.web.logs import LINES, SHOWN
from kvactor.web.parts import PART
from kvactor.web.server import ACCOUNT
from tests.web.conftest import PATIENCE, Connection, Server, message
from tests.web.test_connections import KiB, MiB, Wire, until, upload

GET = message("GET", "/healthz")
POLL = message("GET", "/v1/changes?wait=300")
STREAM = message("GET", "/v1/changes", None, {"Accept": "text/event-stream"})
PUT = message("PUT", "/v1/kv/a", b"." * 20 * KiB)
EXPECTS = {"Expect": "100-continue"}


class Client(Wire):
    """A quick client whose end may be half closed, and that notices when nobody reads."""

    def __init__(self, runner: web.AppRunner, data: bytes = b"") -> None:
        self.paused = self.ended = False
        super().__init__(runner, data, quick=True)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_reading(self) -> bool:
        return not self.paused

    def write_eof(self) -> None:
        self.ended = True

    @property
    def answers(self) -> int:
        return len(re.findall(rb"HTTP/1\.[01] \d", self.taken))


@pytest.fixture
def account(app: web.Application) -> MemoryAccount:
    return app[ACCOUNT]


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# -- heads --


async def test_a_head_counts_while_it_arrives_in_pieces_and_not_when_it_is_whole(
    server: Server, runner: web.AppRunner, account: MemoryAccount
) -> None:
    client = Client(runner, GET)
    assert account.used == 0
    await until(lambda: client.answers == 1)
    for end in range(5, len(GET), 5):
        client.receive(GET[end - 5 : end])
        assert account.used == end
    client.receive(GET[end:])
    assert account.used == 0
    await until(lambda: client.answers == 2)
    client.receive(GET[:10])
    assert account.used == 10
    client.abort()
    await until(lambda: account.used == 0)


def long_head(size: int) -> bytes:
    fields = b"".join(b"X: %b\r\n" % (b"a" * 4000) for _ in range(size // 4005))
    return GET[:-2] + fields + b"\r\n"


@pytest.mark.parametrize("piece", [1000, MiB])
@pytest.mark.parametrize(("size", "status"), [(MAX_HEAD // 2, b"200"), (MAX_HEAD + 5000, b"400")])
async def test_a_head_has_a_bound_whether_it_is_in_one_piece_or_many(
    server: Server, runner: web.AppRunner, account: MemoryAccount, piece: int, size: int, status: bytes
) -> None:
    client = Client(runner)
    data = long_head(size)
    for start in range(0, len(data), piece):
        client.receive(data[start : start + piece])
        assert account.used <= MAX_HEAD
    await until(lambda: client.answers == 1)
    assert client.taken[9:].startswith(status)
    assert account.used == 0


ENDLESS = {
    "a line": b"GET / HTTP/1.1\r\nX: " + b"a" * 9000,
    "garbage": b"\x00" * 100,
    "a chunk": message("POST", "/set", None, {"Transfer-Encoding": "chunked"}) + b"zz\r\n",
    "fields": b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000,
}


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS)
async def test_after_a_malformed_head_nothing_is_kept_and_the_collector_is_not_needed(
    server: Server,
    runner: web.AppRunner,
    account: MemoryAccount,
    actor: StoreActor,
    no_collector: None,
    data: bytes,
) -> None:
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(20):
        client = Client(runner, data)
        for _ in range(20):
            client.receive(bytes(100 * KiB))
        await until(lambda: client.answers == 1)  # noqa: B023
        assert client.taken[9:].startswith(b"400 ")
        assert b'\r\n\r\n{"error":' in client.taken
        assert len(client.taken) < KiB + 2 * SHOWN
        await until(lambda: client.ended)  # noqa: B023
        client.abort()
    await until(lambda: actor.metrics.connections == 0)
    await turns()
    after, _ = tracemalloc.get_traced_memory()
    assert account.used == 0
    assert after - before < MiB


CHUNKED = message("PUT", "/v1/kv/a", None, {"Transfer-Encoding": "chunked"})
CHUNK = b"10000\r\n" + bytes(64 * KiB) + b"\r\n"


@pytest.mark.parametrize("ending", ["gone", "malformed", "overloaded", "too large", "late"])
@pytest.mark.parametrize("settings", [Settings(max_body_size=MiB, body_timeout=0.5)])
async def test_nothing_is_kept_of_a_body_that_is_broken_off_and_the_collector_is_not_needed(
    server: Server,
    runner: web.AppRunner,
    account: MemoryAccount,
    actor: StoreActor,
    no_collector: None,
    ending: str,
) -> None:
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(5):
        client = Client(runner, CHUNKED)
        for _ in range(15):
            await turns()
            client.receive(CHUNK)
        await turns()
        others = Lease(account, account.nobody)
        if ending == "gone":
            client.abort()
        elif ending == "malformed":
            client.receive(b"zz\r\n")
        elif ending == "overloaded":
            others.acquire(account.size, refuse=False)
            client.receive(CHUNK)
        elif ending == "too large":
            client.receive(2 * CHUNK)
        if ending != "gone":
            await until(lambda: client.answers == 1)  # noqa: B023
            assert client.taken[9:].startswith((b"400 ", b"503 ", b"413 ", b"408 "))
            client.abort()
        others.close()
    await until(lambda: actor.metrics.connections == 0)
    await turns()
    after, _ = tracemalloc.get_traced_memory()
    assert account.used == 0
    assert after - before < MiB


async def test_a_client_that_is_still_sending_can_read_why_it_was_refused(server: Server) -> None:
    connection = await server.send(b"GET / HTTP/1.1\r\nX: " + b"a" * 4 * MiB)
    answer = await connection.answer()
    assert answer is not None
    assert answer.status == 400
    assert await connection.answer() is None


async def test_a_client_that_never_stops_sending_is_cut_off(
    server: Server, runner: web.AppRunner
) -> None:
    client = Client(runner, b"\x00")
    await until(lambda: client.ended)
    chunk = bytes(MiB)
    for _ in range(LINGER_SIZE // MiB + 1):
        client.receive(chunk)
    # At once, not when its time is over.
    await turns()
    assert client.is_closing()


async def test_of_all_clients_that_never_stop_one_is_read_from_in_each_turn_of_the_loop(
    server: Server, runner: web.AppRunner
) -> None:
    clients = [Client(runner, b"\x00") for _ in range(4)]
    await until(lambda: all(client.ended for client in clients))
    await turns()
    for client in clients:
        client.receive(bytes(SMALL + 1))
    paused = [sum(client.paused for client in clients)]
    assert paused == [3]
    while paused[-1]:
        await asyncio.sleep(0)
        paused.append(sum(client.paused for client in clients))
    assert list(dict.fromkeys(paused)) == [3, 2, 1, 0]
    # A little waits for nobody.
    for client in clients:
        client.receive(bytes(SMALL))
    assert not any(client.paused for client in clients)


# -- behind a request --


async def test_reading_pauses_behind_a_request_and_goes_on_when_its_turn_has_come(
    server: Server, runner: web.AppRunner, account: MemoryAccount, actor: StoreActor
) -> None:
    client = Client(runner, POLL)
    await until(lambda: actor.metrics.subscribers() == 1)
    assert not client.paused
    client.receive(PUT[:1000])
    assert client.paused
    assert account.used == 1000
    await server.proves_itself()  # which ends the long poll
    await until(lambda: not client.paused)
    client.receive(PUT[1000:])
    await until(lambda: client.answers == 2)
    assert b"HTTP/1.1 201" in client.taken
    await until(lambda: account.used == 0)
    client.receive(GET)
    await until(lambda: client.answers == 3)
    assert not client.paused


async def test_a_chunk_of_many_requests_is_answered_in_order_and_parsed_a_few_at_a_time(
    server: Server, runner: web.AppRunner, account: MemoryAccount
) -> None:
    steps = [message("PUT", f"/v1/kv/{number}", b"%d" % number) for number in range(100)]
    data = b"".join(steps)
    client = Client(runner, data)
    assert client.paused
    assert account.used == len(data)
    protocol = client._protocol
    while client.answers < len(steps):
        assert len(protocol._messages) <= QUEUE
        await asyncio.sleep(0)
    assert client.taken.count(b"HTTP/1.1 201") == len(steps)
    await until(lambda: not client.paused)
    assert account.used == 0


async def test_bodies_that_come_late_do_not_stop_those_who_pipeline(
    server: Server, runner: web.AppRunner
) -> None:
    client = Client(runner)
    for number in range(40):
        client.receive(PUT[:1000])
        await turns()
        client.receive(PUT[1000:])
        await until(lambda: client.answers == number + 1)  # noqa: B023
    client.receive(GET * 3)
    await until(lambda: client.answers == 43)


async def test_what_waits_behind_a_request_is_dropped_when_the_client_goes(
    server: Server, runner: web.AppRunner, account: MemoryAccount, actor: StoreActor
) -> None:
    client = Client(runner, POLL)
    await until(lambda: actor.metrics.subscribers() == 1)
    client.receive(GET * 100)
    assert account.used == 100 * len(GET)
    client.abort()
    await until(lambda: account.used == 0)
    await until(lambda: actor.metrics.subscribers() == 0)


@pytest.mark.parametrize("settings", [Settings(write_timeout=0.05)])
@pytest.mark.parametrize("polls", [True, False], ids=["POLLRDHUP", "without, as on macOS"])
async def test_a_client_that_goes_is_noticed_while_nothing_is_read_from_it(
    server: Server,
    actor: StoreActor,
    account: MemoryAccount,
    monkeypatch: pytest.MonkeyPatch,
    polls: bool,
) -> None:
    if not polls:
        monkeypatch.delattr(select, "POLLRDHUP")
    connection = await server.send(POLL)
    await until(lambda: actor.metrics.subscribers() == 1)
    await connection.send(GET * 2000)
    await until(lambda: account.used > 0)
    await connection.reset()
    await until(lambda: actor.metrics.subscribers() == 0)
    await until(lambda: account.used == actor.metrics.connections == 0)


@pytest.mark.parametrize("settings", [Settings(write_timeout=0.05)])
async def test_a_client_that_cannot_be_looked_at_keeps_nobody_from_being_looked_at_again(
    server: Server, actor: StoreActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    with monkeypatch.context() as patched:
        patched.setattr("kvactor.web.server._has_left", None)
        connection = await server.send(POLL + GET * QUEUE)
        await until(lambda: len(failed) > 1)
    await connection.reset()
    await until(lambda: actor.metrics.connections == 0)


@pytest.mark.parametrize("settings", [Settings(write_timeout=0.05)])
@pytest.mark.parametrize("request_", [POLL, STREAM], ids=["long poll", "stream"])
async def test_what_waits_too_long_behind_a_wait_ends_it_and_later_waits_go_on(
    runner: web.AppRunner,
    actor: StoreActor,
    account: MemoryAccount,
    monkeypatch: pytest.MonkeyPatch,
    request_: bytes,
) -> None:
    monkeypatch.setattr("kvactor.web.server.BEHIND", 0.0)
    client = Client(runner, request_)
    await until(lambda: actor.metrics.subscribers() == 1)
    client.receive(GET * 2)
    await until(lambda: client.answers == 3)
    await until(lambda: not client.paused)
    assert account.used == actor.metrics.subscribers() == 0
    client.receive(POLL)
    await until(lambda: actor.metrics.subscribers() == 1)
    await turns()
    assert client.answers == 3
    assert actor.metrics.subscribers() == 1
    client.abort()
    await until(lambda: actor.metrics.subscribers() == 0)


@pytest.mark.parametrize("settings", [Settings(max_in_flight_size=100 * KiB)])
async def test_what_is_behind_a_request_is_refused_without_memory_for_it(
    server: Server, runner: web.AppRunner, account: MemoryAccount, actor: StoreActor
) -> None:
    clients = [Client(runner, POLL) for _ in range(2)]
    await until(lambda: actor.metrics.subscribers() == 2)
    for client in clients:
        client.receive(GET * 2000)
    assert account.used < 100 * KiB
    await server.proves_itself()
    await until(lambda: clients[1].ended)
    # The long poll, those that were parsed by then, and the refusal of all others.
    statuses = re.findall(rb"HTTP/1\.[01] (\d+)", clients[1].taken)
    assert statuses[1:] == [b"200"] * QUEUE + [b"503"]
    await until(lambda: clients[0].answers == 2001)
    assert account.used == 0


async def test_a_body_behind_a_request_that_is_refused_is_not_waited_for(
    server: Server, runner: web.AppRunner, account: MemoryAccount, actor: StoreActor
) -> None:
    client = Client(runner, POLL)
    await until(lambda: actor.metrics.subscribers() == 1)
    others = Lease(account, account.nobody)
    others.acquire(account.size, refuse=False)
    client.receive(GET + CHUNKED + CHUNK)
    others.close()
    await server.proves_itself()  # which ends the long poll
    await until(lambda: client.ended or client.is_closing())
    statuses = re.findall(rb"HTTP/1\.[01] (\d+)", client.taken)
    assert statuses == [b"200", b"200", b"503"]
    assert account.used == 0


# -- clients that go --


@pytest.mark.parametrize("request_", [POLL, STREAM], ids=["long poll", "stream"])
@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("settings", [Settings(max_subscribers=1)])
async def test_a_follower_that_is_gone_leaves_its_place_at_once(
    server: Server, actor: StoreActor, request_: bytes, ending: str
) -> None:
    for _ in range(3):
        connection = await server.send(request_)
        await until(lambda: actor.metrics.subscribers() == 1)
        await (connection.close() if ending == "close" else connection.reset())
        await until(lambda: actor.metrics.subscribers() == 0)


async def test_a_client_that_goes_before_its_request_has_begun_is_no_fault_of_the_servers(
    server: Server, runner: web.AppRunner, account: MemoryAccount, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(runner)
    await turns()
    client.receive(PUT[:100])
    client.abort()
    await turns()
    assert account.used == 0
    assert not caplog.records


async def test_a_client_that_goes_while_the_rest_of_a_body_is_dropped_is_no_fault_either(
    server: Server, runner: web.AppRunner, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(runner, GET[:-2] + b"Content-Length: 10\r\n\r\n")
    await until(lambda: client.answers == 1)
    await turns()
    client.abort()
    await turns()
    assert not caplog.records


async def half_closed(server: Server, data: bytes) -> Connection:
    connection = await server.send(data)
    connection._writer.write_eof()
    return connection


@pytest.mark.parametrize("data", [GET, PUT, POLL], ids=["GET", "PUT", "long poll"])
async def test_a_half_closed_client_gets_its_response_and_the_connection_closes(
    server: Server, actor: StoreActor, data: bytes
) -> None:
    connection = await half_closed(server, data)
    answer = await connection.answer()
    assert answer is not None
    assert answer.status in {200, 201}
    assert await connection.answer() is None
    await until(lambda: actor.metrics.connections == actor.metrics.subscribers() == 0)


@pytest.mark.parametrize("later", range(8))
async def test_a_half_closed_client_gets_each_response_whenever_the_next_request_has_come(
    server: Server, runner: web.AppRunner, later: int
) -> None:
    client = Client(runner, message("PUT", "/v1/kv/a", b"."))
    for _ in range(later):
        await asyncio.sleep(0)
    client.receive(GET)
    await until(lambda: not client.paused)
    protocol: Any = client._protocol
    if not protocol.eof_received():
        client.close()
    await until(client.is_closing)
    assert client.answers == 2


async def test_a_stream_of_a_half_closed_client_ends(server: Server) -> None:
    connection = await server.send(STREAM)
    assert await connection.head() is not None
    assert await connection.chunk() == b":\n\n"
    connection._writer.write_eof()
    assert await connection.chunk() == b""


async def test_half_a_request_and_the_end_of_it_get_no_answer(server: Server) -> None:
    for data in (b"", GET[:-5], PUT[:-5]):
        connection = await half_closed(server, data)
        assert await connection.answer() is None


# -- bodies --


@pytest.mark.parametrize("expects", [{}, EXPECTS], ids=["plain", "expects 100"])
@pytest.mark.parametrize("settings", [Settings(max_body_size=1000)])
async def test_a_length_beyond_the_limit_is_refused_before_the_body_comes(
    server: Server, expects: dict[str, str]
) -> None:
    data = message("PUT", "/v1/kv/a", None, {"Content-Length": "1001", **expects})
    connection = await server.send(data)
    answer = await connection.answer()
    assert answer is not None
    assert (answer.status, answer.json()["code"]) == (413, "body_too_large")
    assert answer.headers["Connection"] == "close"
    assert await connection.answer() is None


@pytest.mark.parametrize("settings", [Settings(max_in_flight_size=100 * KiB)])
async def test_a_body_is_refused_before_it_is_read_when_there_is_no_memory_for_it(
    server: Server, account: MemoryAccount
) -> None:
    first = await upload(server, "first", 60 * KiB, of=60 * KiB + 1)
    await until(lambda: account.used >= 60 * KiB)
    data = message("PUT", "/v1/kv/a", None, {"Content-Length": f"{60 * KiB}", **EXPECTS})
    connection = await server.send(data)
    answer = await connection.answer()
    assert answer is not None
    assert (answer.status, answer.headers["Connection"]) == (503, "close")
    assert account.used <= 61 * KiB
    await first.send(b".")
    assert await first.answer() is not None


async def test_a_body_in_pieces_counts_from_its_first_byte_until_the_response(
    server: Server, runner: web.AppRunner, account: MemoryAccount
) -> None:
    head, body = PUT.split(b"\r\n\r\n")
    client = Client(runner, head + b"\r\n\r\n" + body[:10])
    await turns()
    assert account.used == 10
    for start in range(10, len(body) - 10, 1000):
        client.receive(body[start : start + 1000])
        assert account.used == min(start + 1000, len(body))
        if start % 3 == 0:
            await turns()
    await until(lambda: client.answers == 1)
    await until(lambda: account.used == 0)


@pytest.mark.parametrize("settings", [Settings(body_timeout=0.05)])
async def test_after_a_408_the_connection_closes_without_lingering(
    server: Server, runner: web.AppRunner
) -> None:
    client = Client(runner, PUT[:-1])
    await until(lambda: client.answers == 1)
    assert b"HTTP/1.1 408" in client.taken
    await turns()
    assert client.is_closing()
    assert not client.ended


async def test_the_body_of_a_request_that_nobody_reads_counts_and_is_bounded(
    server: Server, runner: web.AppRunner, account: MemoryAccount, actor: StoreActor
) -> None:
    head = message("GET", "/v1/changes?wait=300", None, {"Content-Length": f"{10 * MiB}"})
    client = Client(runner, head)
    await until(lambda: actor.metrics.subscribers() == 1)
    sent = 0
    while not client.paused:
        client.receive(bytes(10 * KiB))
        sent += 10 * KiB
        assert account.used == sent < MiB
    client.abort()
    await until(lambda: account.used == 0)


# -- before the guard --


async def test_an_upgrade_is_ignored_and_the_next_request_is_answered(server: Server) -> None:
    for protocol in ("h2c", "websocket", "TLS/1.0"):
        fields = {"Upgrade": protocol, "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "A"}
        upgrade = message("GET", "/healthz", None, fields)
        connection = await server.send(upgrade + GET + GET + GET)
        for _ in range(4):
            answer = await connection.answer()
            assert answer is not None, protocol
            assert answer.status == 200
        await connection.send(upgrade)
        assert await connection.answer() is not None
        await connection.send(GET)
        assert await connection.answer() is not None


@pytest.mark.parametrize("before", [b"", GET], ids=["with a body", "behind another request"])
async def test_an_upgrade_whose_end_is_not_known_ends_the_connection(
    server: Server, before: bytes
) -> None:
    fields = {"Upgrade": "h2c", "Connection": "Upgrade"}
    body = None if before else b"x" * 10
    data = message("GET" if before else "PUT", "/v1/kv/a", body, fields)
    connection = await server.send(before + data + GET)
    if before:
        assert await connection.answer() is not None
    answer = await connection.answer()
    assert answer is not None
    assert (answer.status, answer.headers["Connection"]) == (404 if before else 201, "close")
    assert await connection.answer() is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (message("GET", "/get/a", None, {"Expect": "tea"}), 417),
        (b"GET /get/a HTTP/1.1\r\nHost: elsewhere.example\r\nExpect: tea\r\n\r\n", 403),
        (b"hello\r\n\r\n", 400),
    ],
    ids=["OPTIONS *", "CONNECT", "Expect", "Expect before the guard", "garbage"],
)
async def test_what_aiohttp_would_answer_by_itself_has_the_shape_of_an_error(
    server: Server, data: bytes, status: int
) -> None:
    answer = await server.exchange(data)
    assert answer is not None
    assert answer.status == status
    assert answer.revision == 0
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == {"error"}


# -- the log --


async def test_the_log_of_malformed_requests_is_bounded(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    for _ in range(4 * LINES):
        answer = await server.exchange(bytes(200_000))
        assert answer is None or len(answer.body) < KiB
    lines = [one for one in caplog.records if one.name.startswith(("aiohttp", "kvactor.web"))]
    assert LINES <= len(lines) < 3 * LINES
    for line in lines:
        assert line.levelno == logging.INFO
        assert line.exc_info is None
        assert len(line.getMessage()) < KiB
        assert line.getMessage().isprintable()
    async with asyncio.timeout(PATIENCE):
        while not any(" more in 1 s" in one.getMessage() for one in caplog.records):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("settings", [Settings(access_log=True)])
async def test_the_access_log_shows_nothing_raw_that_a_client_chose(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = message("GET", "/get/" + "a" * 5000, None, {"User-Agent": "\xff raw"})
    assert await server.exchange(data) is not None
    await until(lambda: any(one.name == "aiohttp.access" for one in caplog.records))
    (line,) = [one.getMessage() for one in caplog.records if one.name == "aiohttp.access"]
    assert "raw" not in line
    assert len(line) < KiB


# -- chunks, large heads, and what is lost --


class CountingParser:
    """A parser that adds up the bytes that it gets."""

    def __init__(self, parser: Any, seen: list[int]) -> None:
        self._parser = parser
        self._seen = seen

    def feed_data(self, data: bytes) -> Any:
        self._seen[-1] += len(data)
        return self._parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


TINY = b"1\r\nx\r\n" * 10_000
#: A body of tiny chunks at once, its head first, and behind a request.
ARRIVALS = {"at once": [CHUNKED + TINY], "later": [CHUNKED, TINY], "behind": [GET + CHUNKED + TINY]}


@pytest.mark.parametrize("arrivals", ARRIVALS.values(), ids=ARRIVALS)
async def test_bodies_in_tiny_chunks_are_parsed_in_parts_one_of_all_connections_in_a_turn(
    server: Server, runner: web.AppRunner, account: MemoryAccount, arrivals: list[bytes]
) -> None:
    seen = [0]
    clients = [Client(runner) for _ in range(4)]
    for client in clients:
        protocol: Any = client._protocol
        protocol._parser = CountingParser(protocol._parser, seen)
    for data in arrivals:
        seen.append(0)
        for client in clients:
            client.receive(data)
        for client in clients:
            # Only what is counted is kept.
            assert len(data) < PART or client.paused
        assert len(data) < PART or account.used >= 3 * len(data)
    for client in clients:
        client.receive(b"0\r\n\r\n")
    while min(client.answers for client in clients) < 1 + (len(arrivals[0]) > len(TINY + CHUNKED)):
        await asyncio.sleep(0)
        seen.append(0)
    assert max(seen[2:]) <= PART
    assert all(b" 201 " in one.taken or b" 200 " in one.taken for one in clients)
    assert (await server.request("GET", "/v1/kv/a")).body == b"x" * 10_000
    await until(lambda: not any(client.paused for client in clients))
    await until(lambda: account.used == 0)


async def test_what_is_left_of_parts_goes_with_the_connection(
    server: Server, runner: web.AppRunner, account: MemoryAccount
) -> None:
    clients = [Client(runner, CHUNKED + TINY) for _ in range(4)]
    assert account.used > 3 * len(TINY)
    for client in clients:
        client.abort()
    await until(lambda: account.used == 0)


async def test_parts_are_refused_without_memory_for_them(
    server: Server, runner: web.AppRunner, account: MemoryAccount
) -> None:
    others = Lease(account, account.nobody)
    others.acquire(account.size, refuse=False)
    client = Client(runner, CHUNKED + TINY)
    await until(lambda: client.answers == 1)
    assert client.taken[9:].startswith(b"503 ")
    assert not client.paused
    others.close()
    await until(lambda: account.used == 0)


@pytest.mark.parametrize(
    "data",
    [long_head(MAX_HEAD // 2).replace(b"/healthz", b"/v1/changes?wait=300"), STREAM],
    ids=["a long poll", "a small head"],
)
async def test_a_large_head_counts_until_the_response(
    server: Server, runner: web.AppRunner, account: MemoryAccount, actor: StoreActor, data: bytes
) -> None:
    client = Client(runner, data)
    await until(lambda: actor.metrics.subscribers() == 1)
    held = 2 * len(data) if len(data) > SMALL else 0
    assert 0.9 * held <= account.used <= held
    client.abort()
    await until(lambda: account.used == 0)


async def test_a_large_head_counts_while_its_body_arrives_and_is_refused_without_memory(
    server: Server, runner: web.AppRunner, account: MemoryAccount
) -> None:
    fields = b"".join(b"X: %b\r\n" % (b"a" * 4000) for _ in range(8))
    head = b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n" + fields + b"\r\n"
    client = Client(runner, head)
    await until(lambda: account.used > 1.9 * len(head))
    others = Lease(account, account.nobody)
    others.acquire(account.size, refuse=False)
    refused = Client(runner, head)
    await until(lambda: refused.answers == 1)
    assert refused.taken[9:].startswith(b"503 ")
    refused.abort()
    others.close()
    client.receive(b"value")
    await until(lambda: client.answers == 1)
    await until(lambda: account.used == 0)
    assert client.taken[9:].startswith(b"201 ")


async def test_a_response_that_is_lost_leaves_memory_without_the_collector(
    server: Server, runner: web.AppRunner, account: MemoryAccount, actor: StoreActor, no_collector: None
) -> None:
    await server.request("PUT", "/v1/kv/large", "." * (MiB - KiB))
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(5):
        wire = Wire(runner, message("GET", "/v1/kv/large"))
        await until(lambda: wire.written > 64 * KiB)  # noqa: B023
        wire._protocol.connection_lost(ConnectionResetError())
    await until(lambda: account.used == 0)
    await turns()
    after, _ = tracemalloc.get_traced_memory()
    assert after - before < MiB
