"""The list of what a server on aiohttp needs beyond its defaults.

Other tests hold these parts of it:

- the internals of aiohttp that are relied on: test_server
- a body that does not arrive in time: test_errors, ..._gets_408; too much under way: test_connections
- writing in chunks of 64 KiB, and slow clients: test_connections
- no start without the parser in C: test_errors, test_create_app_refuses_aiohttp_...
- other HTTP than 1.0 and 1.1, targets without a path, requests with an ambiguous end: test_bad_http
- Host, Origin, preflights, no CORS: test_origins
- a warning on other than loopback addresses: process/test_start, ..._warns_that_...
- tracebacks of the server's own faults stay in the log: test_errors, test_an_unexpected_exception_...
"""

import asyncio
import gzip
import logging
from collections.abc import Callable

import pytest

from kvactor.actor import StoreActor
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.storage.memory import MemoryTree
from tests.core.harness import HeldJournal
from tests.web.conftest import PATIENCE, Server, message
from tests.web.test_in_flight import reached, release

GOOD = b'{"key": "a", "value": 1}'
STREAM = message("GET", "/v1/changes", None, {"Accept": "text/event-stream"})


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not happened():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("settings", [Settings(keepalive_timeout=0.05)])
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHo", message("GET", "/healthz")])
async def test_a_connection_that_is_idle_or_in_the_middle_of_a_head_is_closed(
    server: Server, begun: bytes
) -> None:
    connection = await server.send(begun)
    if begun.endswith(b"\r\n\r\n"):
        assert await connection.answer() is not None
    assert await connection.answer() is None


def test_a_connection_may_be_idle_for_75_seconds_and_not_for_an_hour() -> None:
    assert Settings().keepalive_timeout == 75


@pytest.mark.parametrize(
    ("settings", "lines"), [(Settings(), 0), (Settings(access_log=True), 1)], ids=["default", "asked"]
)
async def test_requests_are_logged_only_with_access_log(
    server: Server, caplog: pytest.LogCaptureFixture, lines: int
) -> None:
    caplog.set_level(logging.DEBUG)
    await server.request("GET", "/healthz")
    assert len([one for one in caplog.records if "/healthz" in one.getMessage()]) == lines


async def test_a_compressed_body_is_neither_decompressed_nor_stored(server: Server) -> None:
    fields = {"Content-Encoding": "gzip"}
    bomb = message("PUT", "/v1/kv/bomb", gzip.compress(bytes(50_000_000)), fields)
    for data in (bomb, message("POST", "/set", gzip.compress(GOOD), fields)):
        refused = await server.exchange(data)
        assert refused is not None
        assert refused.status == 415
    assert await server.proves_itself() == 1


@pytest.mark.parametrize(
    ("path", "key"),
    [("%25FF%25fe", "%FF%fe"), ("%2525", "%25"), ("a%2Fb", "a/b"), ("%FF%fe", None), ("%", None)],
)
async def test_a_path_is_decoded_once_and_strictly(server: Server, path: str, key: str | None) -> None:
    stored = await server.request("PUT", f"/v1/kv/{path}", 1)
    assert stored.status == (400 if key is None else 201)
    items = (await server.request("GET", "/v1/kv")).json()["items"]
    assert [item["key"] for item in items] == ([] if key is None else [key])


async def test_a_broken_upload_is_logged_in_one_line_without_a_traceback(
    server: Server, actor: StoreActor, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[logging.LogRecord]:
        return [one for one in caplog.records if one.name.startswith(("aiohttp", "kvactor.web"))]

    caplog.set_level(logging.INFO)
    for begun in (message("PUT", "/v1/kv/a", bytes(1000))[:-1], message("POST", "/set", GOOD)[:-1]):
        caplog.clear()
        connection = await server.send(begun)
        await server.request("GET", "/healthz")
        await connection.reset()
        await until(lambda: actor.metrics.connections == 0 and bool(lines()))
        await server.proves_itself()
        (line,) = lines()
        assert (line.levelname, line.exc_info, line.exc_text) == ("INFO", None, None)
        assert "\n" not in line.getMessage()


# -- in the middle of a flush --


@pytest.fixture
def journal() -> HeldJournal:
    return HeldJournal(holding=False)


@pytest.fixture
def storage(journal: HeldJournal) -> Storage:
    return Storage(journal, MemoryTree())


async def test_a_handler_goes_on_when_its_client_is_gone(
    server: Server, actor: StoreActor, journal: HeldJournal
) -> None:
    journal.holding = True
    gone = await server.send(message("POST", "/set", GOOD))
    await reached(journal)
    await gone.reset()
    await until(lambda: actor.metrics.connections == 0)
    release(journal)
    await until(lambda: ("POST", "/set", 200) in actor.metrics.requests)


@pytest.mark.parametrize("settings", [Settings(shutdown_timeout=0.05, write_timeout=600)])
async def test_a_stop_waits_for_a_client_that_does_not_read_for_shutdown_timeout_and_no_longer(
    server: Server,
) -> None:
    for number in range(8):
        value = message("PUT", f"/v1/kv/{number}", bytes(1024 * 1024))
        assert await server.exchange(value) is not None
    connection = await server.send(message("GET", "/v1/kv"))
    assert await connection.head() is not None
    async with asyncio.timeout(PATIENCE):
        await server.stop()


async def test_a_stop_closes_the_listener_then_streams_then_requests_then_the_storage(
    server: Server, journal: HeldJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(journal, "close", lambda: steps.append("the storage is closed"))
    stream, idle = await server.send(STREAM), await server.connect()
    assert await stream.head() is not None
    assert await stream.chunk() == b":\n\n"
    journal.holding = True
    writer = await server.send(message("POST", "/set", GOOD))
    await reached(journal)
    stop = asyncio.ensure_future(server.stop())
    assert await idle.answer() is None
    with pytest.raises(ConnectionRefusedError):
        await server.connect()
    assert await stream.chunk() == b""
    assert not stop.done()
    assert steps == []
    release(journal)
    answer = await writer.answer()
    assert answer is not None
    assert (answer.status, answer.revision) == (200, 1)
    steps.append("the write is answered")
    await stop
    assert steps == ["the write is answered", "the storage is closed"]
