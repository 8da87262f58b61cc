"""The benchmark's own load generator: what wrk does, and requests that depend on an answer.

`python -m kvactor.tools.bench.load HOST WORKLOAD CLIENTS SECONDS KEYS` prints one line of JSON, as
wrk.lua does.
A closed loop: each client has one keep-alive connection and one request on its way. When the time
is up each script is played to its end, uncounted, so that no transaction stays open.
"""

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar, cast

import msgspec
import uvloop

from kvactor.tools.bench.counts import Run, Sample
from kvactor.tools.bench.feed import Subscriber
from kvactor.tools.bench.workloads import (
    FILL,
    SET,
    STAMPED_PUT,
    WORKLOADS,
    Load,
    Request,
    Script,
    transaction,
)
from kvactor.tools.http import ClientProtocol

P = TypeVar("P", bound=asyncio.BaseProtocol)

GRACE_SECONDS: Final = 30

#: How many of each request with many keys are made, once.
POOL: Final = 256


class Client(asyncio.Protocol):
    """Plays one script on one connection."""

    _transport: asyncio.Transport

    def __init__(self, run: Run, script: Script) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._run = run
        self._script = script
        self._protocol = ClientProtocol()
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; `start` sends the first request."""
        self._transport = cast(asyncio.Transport, transport)

    def start(self) -> None:
        """Send the first request."""
        self._advance(None)

    def data_received(self, data: bytes) -> None:
        """Count a whole response, and go on with the script."""
        self._protocol.receive(data)
        response = self._protocol.response()
        if response is None:
            return
        now = time.perf_counter()
        self._run.errors += not response.ok
        self._run.count(self._sent, now)
        self._advance(response.body if response.ok else None)

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
        self._protocol.expect()
        self._sent = time.perf_counter()
        self._transport.write(request)


class Drawn:
    """A workload's requests, drawn at random in its proportion."""

    def __init__(self, host: str, load: Load) -> None:
        self._host = host
        self._keys = load.keys
        self._random = random.Random(1)
        self._shares, self._kinds = zip(*load.workload.requests, strict=True)
        self._pools = {
            kind: [self._make(kind) for _ in range(POOL)] for kind in self._kinds if kind.numbers > 1
        }

    def draw(self) -> bytes:
        """Return one."""
        (kind,) = self._random.choices(self._kinds, self._shares)
        pool = self._pools.get(kind)
        return self._random.choice(pool) if pool else self._make(kind)

    def _make(self, kind: Request) -> bytes:
        numbers = (self._random.randrange(self._keys) for _ in range(kind.numbers))
        return kind.raw(self._host, *numbers)


def drawn(run: Run, requests: Drawn) -> Script:
    """Ask at random."""
    while run.going():
        yield requests.draw()


def transactions(run: Run, host: str, numbers: range) -> Script:
    """Run transactions one after the other, over keys that no other client uses."""
    for number in itertools.cycle(numbers):
        if not run.going():
            return
        yield from transaction(host, number)


def fill(run: Run, host: str, numbers: range) -> Script:
    """Set this client's share of the keys once."""
    for number in numbers:
        if not run.going():
            return
        yield SET.raw(host, number)


def stamped(run: Run, host: str, numbers: range) -> Script:
    """Write values that say when they were sent, over keys that no other client uses."""
    for number in itertools.cycle(numbers):
        if not run.going():
            return
        yield STAMPED_PUT.raw(host, number, time.perf_counter_ns())


SCRIPTS: Final = {"transaction": transactions, "fill": fill, "feed": stamped}


def scripts(run: Run, host: str, load: Load) -> list[Script]:
    """Return what each client plays."""
    if load.workload.requests:
        requests = Drawn(host, load)
        return [drawn(run, requests) for _ in range(load.clients)]
    script = SCRIPTS[load.workload.name]
    shares = (range(first, load.keys, load.clients) for first in range(load.clients))
    return [script(run, host, share) for share in shares]


async def connect(host: str, protocols: list[Callable[[], P]]) -> list[P]:
    """Connect to `host` once for each protocol."""
    loop = asyncio.get_running_loop()
    address, port = host.split(":")
    return [(await loop.create_connection(one, address, int(port)))[1] for one in protocols]


async def play(host: str, load: Load) -> Sample:
    """Connect all clients, then let them play until the time is up."""
    asking, following = Run(), Run()
    subscribers = await connect(
        host, [partial(Subscriber, host, following)] * load.workload.subscribers
    )
    for subscriber in subscribers:
        await asyncio.wait_for(subscriber.ready, GRACE_SECONDS)
    clients = await connect(
        host, [partial(Client, asking, script) for script in scripts(asking, host, load)]
    )
    started = time.perf_counter()
    asking.deadline = following.deadline = started + load.seconds
    for client in clients:
        client.start()
    await asyncio.wait([client.done for client in clients], timeout=load.seconds + GRACE_SECONDS)
    asking.errors += sum(not client.done.done() for client in clients)
    for subscriber in subscribers:
        subscriber.close()
    counted = following if subscribers else asking
    return counted.sample(started, asking.errors + following.errors)


def main() -> None:
    """Read the command line, run, and print the sample."""
    workloads = {**WORKLOADS, FILL.name: FILL}
    parser = argparse.ArgumentParser(prog="python -m kvactor.tools.bench.load", description=__doc__)
    parser.add_argument("host")
    parser.add_argument("workload", choices=workloads)
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=int)
    parser.add_argument("keys", type=int)
    args = parser.parse_args()
    load = Load(workloads[args.workload], args.clients, args.seconds, args.keys)
    sample = uvloop.run(play(args.host, load))
    print(msgspec.json.encode(sample).decode())


if __name__ == "__main__":
    main()
