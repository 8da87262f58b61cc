"""Slow clients and too many connections: slow clients are disconnected, connections over the limit get
503, large bodies and responses are bounded, and other clients are served meanwhile.
"""

import asyncio
import errno
import gc
import json
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from kvactor.actor import StoreActor
from kvactor.settings import Settings
from kvactor.web.limits import CHUNK_SIZE
from kvactor.web.server import ACCOUNT
from tests.web.conftest import PATIENCE, Answer, Connection, Server, message

KiB, MiB = 1024, 1024 * 1024

#: More than the kernel takes for a client that does not read.
PAGE = "/v1/kv?prefix=page/"
PAGE_SIZE = 8 * MiB

STREAM = message("GET", "/v1/changes", None, {"Accept": "text/event-stream"})
#: One revision, one large event.
BATCH = {"operations": [{"op": "put", "key": f"{one}", "value": "." * 100 * KiB} for one in range(5)]}


async def fill(server: Server) -> None:
    """Store what `PAGE` shows."""
    for number in range(PAGE_SIZE // MiB):
        assert (await put(server, f"page/{number}", MiB)).status == 201


async def put(server: Server, key: str, size: int) -> Answer:
    text = {"Content-Type": "text/plain"}
    answer = await server.exchange(message("PUT", f"/v1/kv/{key}", b"." * size, text))
    assert answer is not None
    return answer


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not happened():
            await asyncio.sleep(0.002)


class Reader:
    """A client that reads only in `read`, with a small buffer in its kernel."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KiB)
        self._socket.setblocking(False)

    async def ask(self, server: Server, data: bytes) -> None:
        await self._loop.sock_connect(self._socket, server.address)
        await self._loop.sock_sendall(self._socket, data)

    async def read(self, size: int) -> int:
        """Return how many bytes of `size` there were before the connection ended."""
        left = size
        try:
            async with asyncio.timeout(PATIENCE):
                while left and (piece := await self._loop.sock_recv(self._socket, min(left, MiB))):
                    left -= len(piece)
        except ConnectionError:
            pass
        return size - left

    @property
    def error(self) -> int:
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


class Wire(asyncio.Transport):
    """The server's end of a connection. Its client and kernel take data when `take` is called, or, if
    `quick`, at once.
    """

    def __init__(self, runner: web.AppRunner, data: bytes, *, quick: bool = False) -> None:
        super().__init__()
        assert runner.server is not None
        self._protocol = runner.server()
        self._high = 64 * KiB
        #: bytes that are not taken, and all that there were
        self.size = self.written = 0
        self._closing = False
        self.aborted = False
        self._quick = quick
        #: what a quick client has taken
        self.taken = b""
        self._protocol.connection_made(self)
        self.receive(data)

    def receive(self, data: bytes) -> None:
        """Receive data from the client."""
        self._protocol.data_received(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * KiB if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._quick:
            self.taken += data
            return
        self.size += len(data)
        self.written += len(data)
        if self.size > self._high and not self._protocol.writing_paused:
            self._protocol.pause_writing()

    def take(self) -> None:
        """Take all that was written."""
        self.size = 0
        if self._protocol.writing_paused:
            self._protocol.resume_writing()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        # It goes on until all is taken.
        self._closing = True

    def abort(self) -> None:
        self._closing = self.aborted = True
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


Advance = Callable[[float], None]


@pytest.fixture
async def advance(monkeypatch: pytest.MonkeyPatch) -> Advance:
    """Advance the loop's clock by seconds."""
    loop = asyncio.get_running_loop()
    time, passed = loop.time, 0.0

    def advance(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(loop, "time", lambda: time() + passed)
    return advance


async def swept() -> None:
    """Run what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


# -- slow clients --

PATIENT = Settings(write_timeout=30, keepalive_timeout=10_000, heartbeat=10_000)


@pytest.mark.parametrize("settings", [PATIENT])
async def test_a_slow_reader_is_served_and_one_that_stops_is_disconnected(
    server: Server, actor: StoreActor, reader: Reader, advance: Advance
) -> None:
    await fill(server)
    await reader.ask(server, message("GET", PAGE))
    assert await reader.read(CHUNK_SIZE) == CHUNK_SIZE
    for _ in range(6):
        for _ in range(2):
            advance(10)
            await swept()
        assert await reader.read(4 * CHUNK_SIZE) == 4 * CHUNK_SIZE
    assert actor.metrics.slow_clients_disconnected == 0
    for _ in range(3):
        advance(20)
        await swept()
    await until(lambda: actor.metrics.slow_clients_disconnected == 1 and actor.metrics.connections == 0)
    assert await reader.read(2 * PAGE_SIZE) < PAGE_SIZE
    await server.proves_itself()


@pytest.mark.parametrize("settings", [Settings(write_timeout=0.05)])
@pytest.mark.parametrize("field", ["Connection: close", "Connection: keep-alive"])
async def test_a_client_that_does_not_read_its_response_is_disconnected(
    server: Server, actor: StoreActor, reader: Reader, field: str
) -> None:
    await fill(server)
    await reader.ask(server, f"GET {PAGE} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n\r\n".encode())
    await until(lambda: actor.metrics.slow_clients_disconnected == 1)
    await until(lambda: actor.metrics.connections == 0)
    # The kernel does not keep the rest, either: the client is told at once, though it does not read.
    await until(lambda: reader.error == errno.ECONNRESET)


@pytest.mark.parametrize("settings", [Settings(write_timeout=0.05)])
@pytest.mark.parametrize("data", [message("GET", PAGE), STREAM], ids=["page", "stream"])
async def test_a_lost_connection_leaves_nothing_to_the_collector(
    server: Server, actor: StoreActor, reader: Reader, data: bytes
) -> None:
    await fill(server)
    gc.collect()
    gc.disable()
    try:
        await reader.ask(server, data)
        await until(lambda: actor.metrics.slow_clients_disconnected == 1)
        await until(lambda: actor.metrics.subscribers() == actor.metrics.connections == 0)
        assert not [one for one in gc.get_objects() if isinstance(one, ConnectionError)]
    finally:
        gc.enable()


@pytest.mark.parametrize("settings", [Settings(write_timeout=0.05)])
async def test_a_client_that_does_not_read_its_stream_is_disconnected(
    server: Server, actor: StoreActor, reader: Reader
) -> None:
    await fill(server)
    await reader.ask(server, STREAM)
    await until(lambda: actor.metrics.slow_clients_disconnected == 1)
    await until(lambda: actor.metrics.subscribers() == actor.metrics.connections == 0)


async def test_a_large_event_is_written_in_chunks(server: Server) -> None:
    assert (await server.request("POST", "/v1/batch", BATCH)).status == 200
    connection = await server.send(STREAM)
    await connection.head()
    pieces = [await connection.chunk()]
    while not pieces[-1].endswith(b"\n\n"):
        pieces.append(await connection.chunk())
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) == CHUNK_SIZE
    # The head of the event, the text in chunks, its end.
    assert sizes[1:-3] == [CHUNK_SIZE] * (len(sizes) - 4)
    data = b"".join(pieces).partition(b"data: ")[2]
    assert [change["key"] for change in json.loads(data)["changes"]] == list("01234")


@pytest.mark.parametrize("settings", [Settings(shutdown_timeout=600, write_timeout=600)])
async def test_a_stop_does_not_wait_for_a_reader_of_a_stream_that_does_not_read(
    server: Server, actor: StoreActor, reader: Reader
) -> None:
    await fill(server)
    await reader.ask(server, STREAM)
    await until(lambda: actor.metrics.subscribers() == 1)
    async with asyncio.timeout(PATIENCE):
        await server.stop()


@pytest.mark.parametrize("settings", [Settings(shutdown_timeout=600, write_timeout=600)])
async def test_a_stop_does_not_wait_in_the_middle_of_an_event(
    server: Server, runner: web.AppRunner
) -> None:
    assert (await server.request("POST", "/v1/batch", BATCH)).status == 200
    wire = Wire(runner, STREAM)
    await until(lambda: wire.written > CHUNK_SIZE)
    async with asyncio.timeout(PATIENCE):
        await server.stop()
    assert wire.aborted


HEALTH = message("GET", "/healthz")


@pytest.mark.parametrize("settings", [Settings(max_connections=1)])
@pytest.mark.parametrize("data", [b"", HEALTH[:10]])
async def test_a_stop_does_not_wait_for_connections_made_right_before_it(
    server: Server, runner: web.AppRunner, data: bytes
) -> None:
    # None of their tasks has begun, and the second one is one too many.
    wires = [Wire(runner, data) for _ in range(2)]
    assert runner.server is not None
    runner.server.pre_shutdown()
    async with asyncio.timeout(PATIENCE):
        await runner.server.shutdown(600)
    assert all(wire.is_closing() for wire in wires)


@pytest.mark.parametrize("turns", [0, 3])
async def test_a_request_that_came_right_before_a_stop_is_answered(
    server: Server, runner: web.AppRunner, turns: int
) -> None:
    wire = Wire(runner, b"", quick=True)
    for _ in range(turns):
        # Without any, the connection's task has not begun.
        await asyncio.sleep(0)
    wire.receive(HEALTH)
    assert runner.server is not None
    runner.server.pre_shutdown()
    async with asyncio.timeout(PATIENCE):
        await runner.server.shutdown(600)
    assert wire.taken.startswith(b"HTTP/1.1 200")
    assert wire.is_closing()


@pytest.mark.parametrize("settings", [PATIENT])
@pytest.mark.parametrize("field", [b"Connection: close", b"Connection: keep-alive"])
async def test_a_small_response_that_is_not_read_is_watched_as_a_large_one(
    server: Server, runner: web.AppRunner, advance: Advance, field: bytes
) -> None:
    wire = Wire(runner, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % field)
    await until(lambda: wire.size > 0)
    advance(20)
    await swept()
    assert not wire.aborted
    advance(20)
    await swept()
    assert wire.aborted
    await server.proves_itself()


# -- the number of connections --


async def ready(connection: Connection) -> Answer:
    await connection.send(message("GET", "/v1/status"))
    answer = await connection.answer()
    assert answer is not None
    return answer


@pytest.mark.parametrize("settings", [Settings(max_connections=2)])
async def test_a_connection_over_the_limit_gets_503_and_is_closed(
    server: Server, actor: StoreActor
) -> None:
    first, second, third = [await server.connect() for _ in range(3)]
    assert [(await ready(one)).status for one in (first, second)] == [200, 200]
    refused = await ready(third)
    assert (refused.status, refused.json()["code"]) == (503, "too_many_connections")
    assert (refused.headers["Retry-After"], refused.headers["Connection"]) == ("1", "close")
    assert refused.revision == 0
    assert await third.answer() is None
    simple = await server.exchange(message("POST", "/set", b'{"key": "a", "value": 1}'))
    assert simple is not None
    assert (simple.status, set(simple.json())) == (503, {"error"})
    assert (await ready(first)).status == 200
    assert actor.revision == 0
    assert actor.metrics.errors["too_many_connections"] == 2
    await second.close()
    await until(lambda: actor.metrics.connections == 1)
    assert (await ready(await server.connect())).status == 200


@pytest.mark.parametrize("settings", [Settings(max_connections=1)])
async def test_a_silent_connection_over_the_limit_is_closed(server: Server, advance: Advance) -> None:
    assert (await ready(await server.connect())).status == 200
    silent, half = await server.connect(), await server.send(b"GET / HT")
    advance(3)
    assert await silent.answer() is None
    assert await half.answer() is None


async def test_connections_are_counted_while_they_are_open(server: Server, actor: StoreActor) -> None:
    connections = [await server.connect() for _ in range(5)]
    for one in connections:
        await ready(one)
    metrics = (await server.request("GET", "/metrics")).body.decode()
    assert "\nkvactor_connections 6.0\n" in metrics
    for one in connections:
        await one.close()
    await until(lambda: actor.metrics.connections == 0)


# -- large bodies and responses --

SMALL_BUDGET = Settings(max_in_flight_size=200 * KiB)


async def upload(server: Server, key: str, size: int, of: int) -> Connection:
    """Send `size` bytes of a body that will have `of`, and return when the server has them."""
    fields = {"Content-Length": f"{of}", "Expect": "100-continue"}
    connection = await server.send(message("PUT", f"/v1/kv/{key}", None, fields))
    begun = await connection.answer()
    assert begun is not None
    assert begun.status == 100
    await connection.send(b"." * size)
    return connection


async def overloaded(answer: Answer | None) -> None:
    assert answer is not None
    assert (answer.status, answer.json()["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("settings", [SMALL_BUDGET])
async def test_large_bodies_under_way_are_bounded_and_small_ones_are_not(
    server: Server, actor: StoreActor
) -> None:
    first = await upload(server, "first", 150 * KiB, of=150 * KiB + 1)
    second: Answer | None = None
    async with asyncio.timeout(PATIENCE):  # until the first one's bytes have all arrived
        while second is None or second.status != 503:
            second = await put(server, "second", 150 * KiB)
    await overloaded(second)
    assert (await put(server, "small", 15 * KiB)).status in {200, 201}
    await first.send(b".")
    stored = await first.answer()
    assert stored is not None
    assert stored.status == 201
    assert (await put(server, "second", 150 * KiB)).status in {200, 201}


@pytest.mark.parametrize("settings", [SMALL_BUDGET])
async def test_large_responses_under_way_are_bounded_and_small_ones_are_not(
    server: Server, reader: Reader
) -> None:
    await fill(server)
    await put(server, "small", KiB)
    await reader.ask(server, message("GET", PAGE))
    assert await reader.read(1) == 1
    refused = await server.request("GET", "/v1/kv/page/1")
    await overloaded(refused)
    assert (await server.request("GET", "/v1/kv/small")).status == 200
    assert await reader.read(PAGE_SIZE) == PAGE_SIZE
    async with asyncio.timeout(PATIENCE):
        while (await server.request("GET", "/v1/kv/page/1")).status != 200:
            pass


@pytest.mark.parametrize("settings", [SMALL_BUDGET])
async def test_an_event_holds_a_chunk_of_memory_until_it_is_read(
    server: Server, runner: web.AppRunner
) -> None:
    account = runner.app[ACCOUNT]
    assert (await server.request("POST", "/v1/batch", BATCH)).status == 200
    wire = Wire(runner, STREAM)
    await until(lambda: wire.written > CHUNK_SIZE)
    assert account.used == CHUNK_SIZE
    while wire.written < 500 * KiB:
        wire.take()
        await swept()
    wire.take()
    await until(lambda: account.used == 0)
    assert not wire.is_closing()
    wire.abort()


@pytest.mark.parametrize("settings", [SMALL_BUDGET])
async def test_a_write_is_refused_before_it_is_done_or_not_at_all(
    server: Server, reader: Reader
) -> None:
    await put(server, "a", 300 * KiB)
    batch = {"operations": [{"op": "put", "key": "b", "value": 1}, {"op": "get", "key": "a"}]}
    first = await upload(server, "first", 100 * KiB, of=100 * KiB + 1)
    async with asyncio.timeout(PATIENCE):  # until the first one's bytes have all arrived
        while (await server.request("GET", "/v1/kv/a")).status != 503:
            pass
    refused = await server.request("POST", "/v1/batch", batch)
    await overloaded(refused)
    assert refused.revision == 1
    await first.close()
    async with asyncio.timeout(PATIENCE):
        while (done := await server.request("POST", "/v1/batch", batch)).status == 503:
            pass
    assert (done.status, done.json()["revision"]) == (200, 2)


@pytest.mark.parametrize("settings", [Settings(max_in_flight_size=2 * MiB)])
async def test_pages_are_shorter_while_the_budget_is_small_and_still_reach_the_end(
    server: Server,
) -> None:
    keys = [f"{number:03}" for number in range(200)]
    operations = [{"op": "put", "key": key, "value": "." * 10 * KiB} for key in keys]
    assert (await server.request("POST", "/v1/batch", {"operations": operations})).status == 200
    query = "/v1/kv?limit=1000"
    whole = (await server.request("GET", query)).json()
    assert [item["key"] for item in whole["items"]] == keys
    other = await upload(server, "other", 150 * KiB, of=150 * KiB + 1)
    page = whole
    async with asyncio.timeout(PATIENCE):  # until the other's bytes have all arrived
        while page["cursor"] is None:
            page = (await server.request("GET", query)).json()
    found = page["items"]
    while page["cursor"] is not None:
        page = (await server.request("GET", f"{query}&cursor={page['cursor']}")).json()
        found += page["items"]
    assert [item["key"] for item in found] == keys
    await other.close()


@pytest.mark.parametrize("settings", [Settings(max_in_flight_size=0)])
async def test_a_request_that_is_alone_is_never_over_the_budget(server: Server) -> None:
    assert (await put(server, "a", MiB)).status == 201
    assert len((await server.request("GET", "/v1/kv/a")).body) == MiB
