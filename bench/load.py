"""The benchmark's own load generator: what wrk does, and requests that depend on an answer.

`python -m bench.load HOST WORKLOAD CLIENTS SECONDS KEYS` prints one line of JSON, as wrk.lua does.
A closed loop: each client has one keep-alive connection and one request on its way. When the time
is up each script is played to its end, uncounted, so that no transaction stays open.
"""

import argparse
import asyncio
import itertools
import random
import time
from functools import partial
from typing import Final, cast

import msgspec
import uvloop

from bench.workloads import FILL, WORKLOADS, Load, Requests, Script

GRACE_SECONDS: Final = 30


class Sample(msgspec.Struct, frozen=True):
    """What a generator saw: answers, errors among them or instead of them, and latency in
    microseconds."""

    requests: int
    errors: int
    seconds: float
    p50_us: float
    p99_us: float


class Run:
    """What the clients share: the clock and the counts."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.latencies: list[float] = []
        self.errors = 0

    def going(self) -> bool:
        """Tell whether there is time left for another round of a script."""
        return time.perf_counter() < self.deadline

    def sample(self, started: float) -> Sample:
        """Sum up what was counted between `started` and now or the deadline."""
        seconds = min(time.perf_counter(), self.deadline) - started
        ordered = sorted(self.latencies) or [0.0]
        p50, p99 = (ordered[int(len(ordered) * share)] * 1e6 for share in (0.50, 0.99))
        return Sample(len(self.latencies), self.errors, seconds, p50, p99)


class Client(asyncio.Protocol):
    """Plays one script on one connection."""

    _transport: asyncio.Transport

    def __init__(self, run: Run, script: Script) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._run = run
        self._script = script
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; `start` sends the first request."""
        self._transport = cast(asyncio.Transport, transport)

    def start(self) -> None:
        """Send the first request."""
        self._advance(None)

    def data_received(self, data: bytes) -> None:
        """Count a whole answer, and go on with the script."""
        self._received += data
        answer = split(self._received)
        if answer is None:
            return
        now = time.perf_counter()
        self._received = b""
        ok, body = answer
        self._run.errors += not ok
        if now < self._run.deadline:
            self._run.latencies.append(now - self._sent)
        self._advance(body if ok else None)

    def connection_lost(self, exc: Exception | None) -> None:
        """A script that did not reach its end is an error, and its client is out."""
        if not self.done.done():
            self._run.errors += 1
            self.done.set_result(None)

    def _advance(self, body: bytes | None) -> None:
        try:
            request = self._script.send(body)
        except StopIteration:
            self.done.set_result(None)
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)


def split(received: bytes) -> tuple[bool, bytes] | None:
    """Return whether an answer is a success, and its body; None if it is not all there.

    Answers must carry a Content-Length: those of this benchmark do.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[:end].lower()
    length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
    body = received[end + 4 :]
    if len(body) < length:
        return None
    return head[9:10] == b"2", body


def random_requests(run: Run, requests: Requests, load: Load, index: int) -> Script:
    """Read or write any keys at random, in the workload's proportion."""
    draw = random.Random(index).random
    while run.going():
        kind = requests.get if draw() * 100 < load.workload.reads else requests.set
        yield kind(int(draw() * load.keys))


def transactions(run: Run, requests: Requests, load: Load, index: int) -> Script:
    """Run transactions one after the other, over keys that no other client uses."""
    for number in itertools.cycle(range(index, load.keys, load.clients)):
        if not run.going():
            return
        yield from requests.transaction(number)


def fill(run: Run, requests: Requests, load: Load, index: int) -> Script:
    """Set this client's share of the keys once."""
    for number in range(index, load.keys, load.clients):
        if not run.going():
            return
        yield requests.set(number)


SCRIPTS: Final = {
    "get": random_requests,
    "set": random_requests,
    "mix": random_requests,
    "transaction": transactions,
    "fill": fill,
}


async def play(host: str, load: Load) -> Sample:
    """Connect all clients, then let them play until the time is up."""
    run, requests = Run(), Requests(host)
    script = SCRIPTS[load.workload.name]
    loop = asyncio.get_running_loop()
    address, port = host.split(":")
    players = []
    for index in range(load.clients):
        client = partial(Client, run, script(run, requests, load, index))
        players.append((await loop.create_connection(client, address, int(port)))[1])
    started = time.perf_counter()
    run.deadline = started + load.seconds
    for player in players:
        player.start()
    await asyncio.wait([player.done for player in players], timeout=load.seconds + GRACE_SECONDS)
    run.errors += sum(not player.done.done() for player in players)
    return run.sample(started)


def main() -> None:
    """Read the command line, run, and print the sample."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("host")
    parser.add_argument("workload", choices=SCRIPTS)
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=int)
    parser.add_argument("keys", type=int)
    args = parser.parse_args()
    workload = WORKLOADS.get(args.workload, FILL)
    load = Load(workload, args.clients, args.seconds, args.keys)
    sample = uvloop.run(play(args.host, load))
    print(msgspec.json.encode(sample).decode())


if __name__ == "__main__":
    main()
