"""A subscriber of the changes feed, for the benchmark: it counts the events that it is told of."""

import asyncio
import time
from typing import Final, cast

from kvactor.tools.bench.counts import Run
from kvactor.tools.bench.workloads import FOLLOW, STAMP_SIZE
from kvactor.tools.http import ClientProtocol
from kvactor.tools.sse import EventParser

_STAMP: Final = '"value":"'


class Subscriber(asyncio.Protocol):
    """Follows the changes on one connection. Each event's value says when it was sent."""

    _transport: asyncio.Transport

    def __init__(self, host: str, run: Run) -> None:
        #: done when the stream has begun
        self.ready = asyncio.get_running_loop().create_future()
        self._host = host
        self._run = run
        self._protocol = ClientProtocol()
        self._parser = EventParser()
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.expect()
        self._transport.write(FOLLOW.format(self._host).encode())

    def data_received(self, data: bytes) -> None:
        """Count the events that have arrived whole."""
        now = time.perf_counter()
        self._protocol.receive(data)
        if self._protocol.head is not None and not self.ready.done():
            self.ready.set_result(None)
        for event in self._parser.feed(self._protocol.read()):
            stamp = event.data.partition(_STAMP)[2][:STAMP_SIZE]
            self._run.count(int(stamp) / 1e9, now)

    def connection_lost(self, exc: Exception | None) -> None:
        """A stream that the server ends is an error."""
        self._run.errors += not self._closing
        if not self.ready.done():
            self.ready.set_result(None)

    def close(self) -> None:
        """End it."""
        self._closing = True
        self._transport.close()
