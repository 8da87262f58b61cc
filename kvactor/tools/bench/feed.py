"""A subscriber of the changes feed, for the benchmark: it counts the events that it is told of."""

import asyncio
import time
from typing import Final, cast

from kvactor.tools.bench.counts import Run
from kvactor.tools.bench.workloads import FOLLOW, STAMP_SIZE

_END: Final = b"\n\n"
_STAMP: Final = b'"value":"'


class Subscriber(asyncio.Protocol):
    """Follows the changes on one connection. Each event's value says when it was sent."""

    _transport: asyncio.Transport

    def __init__(self, host: str, run: Run) -> None:
        #: done when the stream has begun
        self.ready = asyncio.get_running_loop().create_future()
        self._host = host
        self._run = run
        self._rest = b""
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(FOLLOW.format(self._host).encode())

    def data_received(self, data: bytes) -> None:
        """Count the events that have arrived whole."""
        now = time.perf_counter()
        whole, end, self._rest = (self._rest + data).rpartition(_END)
        if end and not self.ready.done():
            self.ready.set_result(None)
        for event in whole.split(_STAMP)[1:]:
            self._run.count(int(event[:STAMP_SIZE]) / 1e9, now)

    def connection_lost(self, exc: Exception | None) -> None:
        """A stream that the server ends is an error."""
        self._run.errors += not self._closing
        if not self.ready.done():
            self.ready.set_result(None)

    def close(self) -> None:
        """End it."""
        self._closing = True
        self._transport.close()
