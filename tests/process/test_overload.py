"""Overload: more clients than the mailbox, the connections, and the process's files have room for.
Each request is answered, or refused with 503; nothing hangs, nothing grows, and after it all is well.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from kvactor.tools.connections import AsyncConnection
from kvactor.tools.http import Response
from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.servers import PATIENCE, Server, until
from tests.sizes import size

SECONDS = size("overload_seconds")
CLIENTS = 120
MAILBOX = 16

#: Bytes that the load may cost the server: its connections, the memtable twice (one is folded while
#: the next is filled), and what the allocator keeps of both.
MEMORY = 50_000_000


class Crowd:
    """Clients that set and get as fast as they are answered, for a time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.statuses: Counter[int] = Counter()
        #: of each key the number that was acknowledged last
        self.told: dict[str, int] = {}
        #: what is wrong with an answer
        self.wrong: list[str] = []

    async def work(self, seconds: float) -> None:
        """Let all of them work, and wait for their last answers."""
        deadline = asyncio.get_running_loop().time() + seconds
        async with asyncio.timeout(seconds + PATIENCE):
            await asyncio.gather(*(self._work(number, deadline) for number in range(CLIENTS)))

    async def _work(self, client: int, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        where = self._server.host, self._server.port
        _, connection = await loop.create_connection(AsyncConnection, *where)
        number = 0
        while loop.time() < deadline:
            number += 1
            key = f"{client}-{number % 10}"
            body = f'{{"key": "{key}", "value": {number}}}'.encode()
            if self._count(await connection.request("POST", "/set", body)):
                self.told[key] = number
            self._count(await connection.request("GET", f"/get/{key}"))
        connection.close()

    def _count(self, response: Response) -> bool:
        self.statuses[response.status] += 1
        retry = response.headers.get("Retry-After") == "1"
        if (response.status == 503) != retry or response.status not in {200, 404, 503}:
            self.wrong.append(f"{response.status} {response.headers} {response.body!r}")
        return response.ok


def test_more_clients_than_the_mailbox_holds_get_answers_or_503_and_nothing_grows(
    start: Start, figure: Callable[[str], None]
) -> None:
    server = start("--mailbox-size", f"{MAILBOX}", "--memtable-size", "100000", "--history", "100")
    before = server.memory()
    crowd = Crowd(server)
    asyncio.run(crowd.work(SECONDS))
    after = server.memory()
    figure(
        f"overload: {CLIENTS} clients, a mailbox of {MAILBOX}, {SECONDS} s: {dict(crowd.statuses)}; "
        f"{before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after"
    )
    assert crowd.wrong == []
    assert min(crowd.statuses[200], crowd.statuses[503]) > 0, "there was no overload"
    assert after - before < MEMORY
    with Client(server) as client:
        assert client.ask("GET", "/readyz").status == 200
        status = client.ask("GET", "/v1/status").body
        assert (status["mailbox"]["waiting"], status["mailbox"]["held"]) == (0, 0)
        for number in range(3 * MAILBOX):
            assert client.set("after", number).status == 200
    assert server.stop() == 0
    assert "ERROR" not in server.log
    stored = {key: int(record.value) for key, record in contents(server.data_dir).records.items()}
    assert stored == {**crowd.told, "after": 3 * MAILBOX - 1}


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """Return a command that runs another with a limit of open files."""
    return ("sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh")


def test_the_process_opens_as_many_files_as_it_may(start: Start) -> None:
    server = start("--memory", prefix=limited(soft=64, hard=400))
    with ExitStack() as clients:
        for number in range(200):
            client = clients.enter_context(Client(server))
            assert client.set("key", number).status == 200


def test_a_server_with_few_files_has_fewer_connections_and_answers_one_more_with_503(
    start: Start,
) -> None:
    server = start(prefix=limited(soft=110, hard=110))
    server.wait_for_log("max_connections is 10000, and the process may open files for 10")
    with ExitStack() as clients:
        served = [clients.enter_context(Client(server)) for _ in range(10)]
        for client in served:
            assert client.set("key", 1).status == 200
        refused = clients.enter_context(Client(server))
        assert refused.ask("GET", "/healthz").status == 503
        assert refused.headers["Connection"] == "close"
        assert refused.headers["Retry-After"] == "1"
        assert served[-1].set("still", "served").status == 200

    def room() -> bool:
        with Client(server) as client:
            return client.get("still").status == 200

    until(room, "room for another connection")
    assert server.stop() == 0
