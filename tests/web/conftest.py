"""One server per test, on a storage in memory and a clock that stands still.

`client` speaks to the application through aiohttp's test client. `server` really listens, with the
limits of `create_runner`, and takes raw bytes. A test uses one of the two: each starts the actor. Other
settings: `@pytest.mark.parametrize("settings", [Settings(...)])`.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from multidict import CIMultiDict
from pytest_aiohttp.plugin import AiohttpClient

from kvactor.actor import StoreActor
from kvactor.server import Server as LifeCycle
from kvactor.server import TcpListener
from kvactor.settings import Settings
from kvactor.storage.directory import Storage, open_memory
from kvactor.web.app import TAGS
from kvactor.web.openapi import errors_of

Client = TestClient[web.Request, web.Application]

#: Seconds after which an answer is not expected any more; only a failing test waits as long.
PATIENCE = 10


#: Turns of the loop after which what was connected is accepted. Before, asyncio would forget to close
#: it if the listener went (Python 3.11; uvloop, which the server runs on, does not).
ACCEPTED = 5

#: Of any route: an expectation that nobody knows, and a fault of the server's.
ANYWHERE = (417, 500, (417, "expectation_failed"), (500, "internal_error"))


class FakeClock:
    """Stands still until `now`, milliseconds since the epoch, is moved."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


class Answer(NamedTuple):
    """An HTTP answer, read whole."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def revision(self) -> int:
        return int(self.headers["Kvactor-Revision"])

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A client's end of a connection. Any bytes may be sent, and the chunks of a body are
    returned as they are framed, which a client hides.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send all of it, unless the server closes the connection."""
        with suppress(ConnectionError):
            self._writer.write(data)
            async with asyncio.timeout(PATIENCE):
                await self._writer.drain()

    async def head(self) -> Answer | None:
        """Return the next answer without its body; None if the server has closed the connection
        instead.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                head = await self._reader.readuntil(b"\r\n\r\n")
        except ConnectionResetError:
            return None
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        status, *fields = head.decode("latin-1").split("\r\n")[:-2]
        headers = CIMultiDict(
            (name, value) for name, _, value in (one.partition(": ") for one in fields)
        )
        return Answer(int(status.split(" ")[1]), headers, b"")

    async def answer(self) -> Answer | None:
        """Return the next answer; None if the server has closed the connection instead."""
        head = await self.head()
        if head is None:
            return None
        async with asyncio.timeout(PATIENCE):
            body = await self._reader.readexactly(int(head.headers.get("Content-Length", "0")))
        return head._replace(body=body)

    async def chunk(self) -> bytes:
        """Return the next chunk of a chunked body; empty: it is over."""
        async with asyncio.timeout(PATIENCE):
            size = int(await self._reader.readline(), 16)
            return (await self._reader.readexactly(size + 2))[:-2]

    async def close(self) -> None:
        """Close it, whatever the server is about to say."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def reset(self) -> None:
        """End it without a goodbye, as a process that is killed may."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()
        await self.close()


def message(
    method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the bytes of a request, well formed as far as its parts are."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Server:
    """A listening server, and what clients do to it: each request over a connection of its own."""

    def __init__(self, host: str, port: int, stop: Callable[[], Awaitable[None]]) -> None:
        self.address = (host, port)
        #: end it as a signal does; its clients keep their connections
        self.stop = stop
        self._connections: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection(*self.address))
        self._connections.append(connection)
        return connection

    async def send(self, data: bytes) -> Connection:
        """Send bytes, and leave their answer to be read later."""
        connection = await self.connect()
        await connection.send(data)
        return connection

    async def exchange(self, data: bytes) -> Answer | None:
        """Send bytes, and return the answer; None if the server closes the connection instead."""
        connection = await self.send(data)
        try:
            return await connection.answer()
        finally:
            await connection.close()

    async def request(
        self, method: str, target: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, with a JSON body if there is one, and return its answer."""
        encoded = None if body is None else json.dumps(body).encode()
        answer = await self.exchange(message(method, target, encoded, headers))
        assert answer is not None
        return answer

    async def set(self, key: str, value: object, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.request("POST", "/set", {"key": key, "value": value}, headers)

    async def get(self, key: str, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.request("GET", f"/get/{key}", None, headers)

    async def proves_itself(self) -> int:
        """Expect that new connections are served: a value is stored and comes back.

        Returns the revision that this made.
        """
        stored = await self.set("good", "value")
        assert (stored.status, stored.json()) == (200, {"status": "ok"})
        assert (await self.get("good")).json() == {"key": "good", "value": "value"}
        return stored.revision

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def storage() -> Storage:
    return open_memory()


@pytest.fixture
def listener() -> TcpListener:
    return TcpListener("127.0.0.1", 0)


@pytest.fixture
def life(storage: Storage, settings: Settings, listener: TcpListener, clock: FakeClock) -> LifeCycle:
    return LifeCycle(storage, settings, listener, clock=clock)


@pytest.fixture
def actor(life: LifeCycle) -> StoreActor:
    return life.actor


@pytest.fixture
def app(life: LifeCycle) -> Iterator[web.Application]:
    """The application; at the end, every answer that it has given has to be one of those described."""
    app = life.app
    described: dict[tuple[str, str], set[int | tuple[int, str]]] = {
        (route.method, route.name): {
            *route.responses,
            *((int(status), kind.code) for status, kinds in errors_of(route).items() for kind in kinds),
        }
        for routes in app[TAGS].values()
        for route in routes
    }
    others = []

    async def look(request: web.Request, answer: web.StreamResponse) -> None:
        resource = request.match_info.route.resource
        allowed = described.get((request.method, resource.canonical if resource else ""))
        if allowed is not None:
            told: int | tuple[int, str] = answer.status
            if answer.content_type == "application/problem+json" and isinstance(answer, web.Response):
                told = (answer.status, json.loads(str(answer.text))["code"])
            elif answer.status >= 400:
                allowed = {one if isinstance(one, int) else one[0] for one in allowed}
            if told not in allowed and told not in ANYWHERE:
                others.append((request.method, request.path, told))

    app.on_response_prepare.append(look)
    yield app
    assert others == []


@pytest.fixture
async def started(actor: StoreActor) -> AsyncIterator[StoreActor]:
    await actor.start()
    yield actor
    await actor.stop()


@pytest.fixture
async def client(started: StoreActor, aiohttp_client: AiohttpClient, app: web.Application) -> Client:
    return await aiohttp_client(app)


@pytest.fixture
async def runner(life: LifeCycle, app: web.Application) -> AsyncIterator[web.AppRunner]:
    await life.start()
    yield life.runner
    for _ in range(ACCEPTED):
        await asyncio.sleep(0)
    await life.stop()


@pytest.fixture
async def server(
    runner: web.AppRunner, life: LifeCycle, listener: TcpListener
) -> AsyncIterator[Server]:
    server = Server(*listener.address, life.stop)
    yield server
    await server.close()
