"""The server under stress, if it is one of stress' own: a process that keeps its port and its data
directory from one incarnation to the next.
"""

import asyncio
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

from kvactor.failpoints import POINTS
from kvactor.settings import FAILPOINTS
from kvactor.tools.processes import ServerProcess, environment

#: Folds follow one another.
_SETTINGS: Final = ("--memtable-size", "200000")

#: Milliseconds that a flush, and a fold, of a slow disk takes longer.
_SLOW: Final = ("flush.before=delay:20", "fold.written=delay:200")


class Server:
    """A server that is started again and again. At most one incarnation runs."""

    def __init__(self, directory: Path, faults: Collection[str]) -> None:
        self.port = 0
        self._directory = directory
        self._failpoints = _SLOW if "slow-disk" in faults else ()
        #: the failpoints that are free
        self.points = [
            point
            for point in POINTS
            if not any(one.startswith(f"{point}=") for one in self._failpoints)
        ]
        self._process: ServerProcess | None = None

    async def start(self, *failpoints: str) -> None:
        """Start it, with failpoints. Raises `ServerFailed`."""
        self.close()
        armed = ",".join((*self._failpoints, *failpoints))
        self._process = ServerProcess(
            [
                *(sys.executable, "-m", "kvactor", "serve", "--port", str(self.port)),
                *("--data-dir", str(self._directory / "data"), *_SETTINGS),
            ],
            environ=environment({FAILPOINTS: armed} if armed else {}),
        )
        await asyncio.to_thread(self._process.wait_until_ready)
        self.port = self._process.port

    @property
    def process(self) -> ServerProcess:
        """Its incarnation, which may have ended. Raises `RuntimeError` before the first start."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    async def wait(self) -> int:
        """Wait for its end, however long that takes, and return its exit status."""
        return await asyncio.to_thread(self.process.wait, None)

    async def stop(self) -> None:
        """Stop it. Raises `ServerFailed` if its exit status is not 0."""
        self.process.send_signal(signal.SIGTERM)
        if status := await asyncio.to_thread(self.process.wait):
            raise self.process.failure(f"ended with status {status}")

    def close(self) -> None:
        """Kill it if it runs."""
        if self._process is not None:
            self._process.close()
            self._process = None
