"""Slow clients: a crowd of those who send a byte at a time or do not read, while healthy clients go on.

`KVACTOR_TEST_SLOW_CLIENTS=334` (of each of three kinds) and `KVACTOR_TEST_SLOW_SECONDS=60` are what
the promise is about.
"""

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread

from kvactor.settings import Settings
from kvactor.tools.quantiles import quantile
from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.servers import PATIENCE, Server, environment, until
from tests.sizes import size

OF_EACH = size("slow_clients")
SECONDS = size("slow_seconds")
#: Stretches without the crowd, each followed by one with it.
ROUNDS = max(2, SECONDS // 15)
STRETCH = SECONDS / ROUNDS
#: Seconds after which the slow are ended: not while they are measured.
LIMIT = 2 * STRETCH
KINDS = ("heads", "bodies", "readers")

MiB = 1024 * 1024
#: Bytes that large bodies and answers may have together, or less: what this crowd asks for. An answer
#: is in memory twice: as it was made, and as it is sent, behind its head.
ROOM = min(Settings().max_in_flight_size, OF_EACH * MiB)
#: Bytes that a slow client may cost beside that: what aiohttp holds of a connection and of a request,
#: with two reads of 64 KiB of its body; what a stream has read of the changes.
EACH = 300 * 1024
#: Bytes for the work of all others meanwhile: what is written to the memtable, the journal's batches.
WORK = 50 * MiB


class Healthy(Thread):
    """Sets and gets keys of its own, until it is told to stop, and measures."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(name=name)
        self._server = server
        self._enough = Flag()
        self.seconds: list[float] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Set and get."""
        try:
            with Client(self._server) as client:
                number = 0
                while not self._enough.is_set():
                    number += 1
                    began = time.monotonic()
                    assert client.set(self.name, number).status == 200
                    assert client.get(self.name).body == {"key": self.name, "value": number}
                    self.seconds.append(time.monotonic() - began)
                    self._enough.wait(0.005)
        except BaseException as error:  # noqa: BLE001 (raised again by `end`, in the test's thread)
            self.failure = error

    def end(self) -> list[float]:
        """Stop, and return how long each set with its get has taken."""
        self._enough.set()
        self.join(PATIENCE)
        if self.failure is not None:
            raise self.failure
        assert not self.is_alive(), "a healthy client got no answer"
        assert self.seconds
        return self.seconds


def healthy(server: Server, seconds: float, watch: Callable[[], None]) -> list[float]:
    """Let healthy clients work; return how long their steps took."""
    clients = [Healthy(server, f"healthy{number}") for number in range(4)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
        watch()
    return [taken for client in clients for taken in client.end()]


Tell = Callable[[str], Counter[str]]


@contextmanager
def crowd(server: Server) -> Iterator[Tell]:
    """Start a crowd. The function has it come, stay or go, and returns what it counts."""
    command = [sys.executable, "-m", "tests.process.slow", server.host, f"{server.port}", f"{OF_EACH}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:

        def tell(what: str) -> Counter[str]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
            return Counter(json.loads(process.stdout.readline()))

        try:
            yield tell
        finally:
            process.kill()


def metric(server: Server, name: str) -> float:
    """Return what /metrics says of `name`."""
    with Client(server) as client:
        lines = client.connection.request("GET", "/metrics").body.decode().splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")))


def test_healthy_clients_are_served_among_slow_ones_which_are_cut_off_and_hold_little(
    start: Start, figure: Callable[[str], None]
) -> None:
    server = start(
        *("--write-timeout", str(LIMIT)),
        *("--body-timeout", str(LIMIT)),
        *("--keepalive-timeout", str(LIMIT)),
    )
    with Client(server) as client:
        for number in range(32):
            client.send("PUT", f"/v1/kv/page/{number}", "." * (MiB // 4))
            assert client.receive().status == 201
    before, most = server.memory(), 0

    def watch() -> None:
        nonlocal most
        most = max(most, server.memory())

    usual: list[float] = []
    crowded: list[float] = []
    counts: Counter[str] = Counter()
    with crowd(server) as tell:
        for _ in range(ROUNDS):
            usual += healthy(server, STRETCH, lambda: None)
            tell("come")
            crowded += healthy(server, STRETCH, watch)
            until(lambda: all(tell("stay")[f"{kind} closed"] for kind in KINDS), "the end of the slow")
            counts += tell("go")
            until(lambda: metric(server, "kvactor_connections") <= 1, "closed connections")
    slow_clients_disconnected = metric(server, "kvactor_slow_clients_disconnected_total")
    (p50, p99), (p50_crowded, p99_crowded) = (
        [quantile(seconds, share) * 1000 for share in (0.5, 0.99)] for seconds in (usual, crowded)
    )
    figure(
        f"{3 * OF_EACH} slow clients for {SECONDS} s: healthy clients' set and get, usually p50 "
        f"{p50:.1f} ms, p99 {p99:.1f} ms; among them p50 "
        f"{p50_crowded:.1f} ms, p99 {p99_crowded:.1f} ms (mean "
        f"{statistics.mean(usual) * 1000:.1f} and {statistics.mean(crowded) * 1000:.1f} ms); "
        f"{before / 1e6:.0f} MB before, {most / 1e6:.0f} MB at most; {slow_clients_disconnected:.0f} "
        "readers disconnected; "
        f"{dict(sorted(counts.items()))}"
    )
    assert most - before < 3 * OF_EACH * EACH + 2 * ROOM + WORK
    assert slow_clients_disconnected > 0
    assert server.stop() == 0
    assert "Traceback" not in server.log
