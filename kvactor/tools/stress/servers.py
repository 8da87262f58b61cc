"""The server under stress, if it is one of our own: a process that is killed and started again, stopped
for a moment, and given a slow disk.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from random import Random

from kvactor.failpoints import POINTS
from kvactor.settings import FAILPOINTS
from kvactor.tools.stress.clients import KNOCK, Stage

#: What may befall a server.
FAULTS = ("kill", "stop", "slow-disk")

#: Folds follow one another.
_SETTINGS = ("--memtable-size", "200000")

#: Milliseconds that a flush, and a fold, of a slow disk takes longer.
_SLOW = ("flush.before=delay:20", "fold.written=delay:200")

#: Seconds for which a server is stopped, at most.
_PAUSE = 1.0

#: Seconds between two faults in a run that has no number of operations, about.
_SECONDS = 1.0

#: How many of the kills are between two steps of a write, about.
_WITHIN = 0.5


#: Lines of a failed server's log that are shown.
_LINES = 20


class Failed(Exception):
    """The server did not start, or has ended otherwise than it was told to."""


class Server:
    """A server process on a data directory. It keeps its port."""

    def __init__(self, directory: Path, faults: Collection[str]) -> None:
        self.port = 0
        self._directory = directory
        self._log = directory / "log"
        self._failpoints = _SLOW if "slow-disk" in faults else ()
        #: the failpoints that are free
        self.points = [
            point
            for point in POINTS
            if not any(one.startswith(f"{point}=") for one in self._failpoints)
        ]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *failpoints: str) -> None:
        """Start it, with failpoints. Raises `Failed`."""
        command = (
            *(sys.executable, "-m", "kvactor", "serve", "--port", str(self.port)),
            *("--data-dir", str(self._directory / "data"), *_SETTINGS),
        )
        environment = {
            name: text for name, text in os.environ.items() if not name.startswith("KVACTOR_")
        }
        armed = ",".join((*self._failpoints, *failpoints))
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment | ({FAILPOINTS: armed} if armed else {}),
            )
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe)
        line = (await self._process.stdout.readline()).decode()
        ready = re.search(r" ready at http://127\.0\.0\.1:(\d+),", line)
        if ready is None:
            raise self.failure("did not start")
        self.port = int(ready[1])

    def failure(self, what: str) -> Failed:
        """Return the error that says what it did, and what it has said of it."""
        end = self._log.read_text(errors="replace").splitlines()[-_LINES:]
        return Failed("\n".join([f"the server {what}; its log ends with", *end]))

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end, and return its exit status."""
        return 0 if self._process is None else await self._process.wait()

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        self.tell(signal.SIGKILL)
        await self.wait()

    async def end(self) -> None:
        """Stop it well. Raises `Failed`."""
        self.tell(signal.SIGTERM)
        if status := await self.wait():
            raise self.failure(f"ended with status {status}")


class Trouble:
    """What befalls a server while clients are at work; `kills` and `pauses` count it."""

    def __init__(
        self, server: Server, stage: Stage, faults: Collection[str], random: Random, every: int | None
    ) -> None:
        self.kills = 0
        #: how many of these were between two steps of a write
        self.within = 0
        self.pauses = 0
        self._server = server
        self._stage = stage
        self._faults = sorted(set(faults) - {"slow-disk"})
        self._random = random
        #: after how many operations one comes, about; None: after a second
        self._every = every

    async def make(self) -> None:
        """Make it, until the run is over. Raises `Failed` if the server ends by itself."""
        server, random = self._server, self._random
        ended = asyncio.create_task(server.wait())
        armed = False
        while not self._stage.done:
            await self._wait_beside(ended)
            fault = random.choice(self._faults) if self._faults else ""
            if not ended.done() and fault == "stop":
                self.pauses += 1
                server.tell(signal.SIGSTOP)
                await asyncio.sleep(random.random() * _PAUSE)
                server.tell(signal.SIGCONT)
            elif ended.done() or fault == "kill":
                self._check(ended, armed)
                await server.kill()
                self.kills += 1
                self._stage.life += 1
                armed = random.random() < _WITHIN
                point = f"{random.choice(server.points)}=kill@{random.randint(1, 100)}"
                await server.start(*[point] if armed else [])
                ended = asyncio.create_task(server.wait())
        if "kill" in self._faults:
            # Whatever has not failed to get to disk by now is not lost any more.
            await server.kill()
            self.kills += 1
            await server.start()
        else:
            ended.cancel()

    def _check(self, ended: "asyncio.Task[int]", armed: bool) -> None:
        """Raise `Failed` unless the server runs, or has come to its failpoint."""
        if ended.done():
            if not armed:
                raise self._server.failure(f"ended with status {ended.result()}")
            self.within += 1

    async def _wait_beside(self, ended: "asyncio.Task[int]") -> None:
        """Wait until it is time for a fault, or the server has ended."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SECONDS * (0.5 + self._random.random())
        count = len(self._stage.history.operations)
        due = count + int((self._every or 0) * (0.5 + self._random.random()))
        while not (ended.done() or self._stage.done):
            count = len(self._stage.history.operations)
            if count >= due and (self._every is not None or loop.time() >= deadline):
                return
            await asyncio.sleep(KNOCK)
