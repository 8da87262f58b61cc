"""The nemesis: it kills the server under stress and starts it again, and stops it for a moment, while
clients are at work.
"""

import asyncio
import signal
from collections.abc import Collection
from random import Random
from typing import Final

from kvactor.tools.stress.clients import RETRY_DELAY, Workload
from kvactor.tools.stress.servers import Server

#: The faults that a run may have.
FAULTS: Final = ("kill", "stop", "slow-disk")

#: Seconds for which a server is stopped, at most.
_PAUSE: Final = 1.0

#: Seconds between two faults in a run that has no number of operations, about.
_SECONDS: Final = 1.0

#: The share of the kills that hit between two steps of a write, about.
_MID_WRITE: Final = 0.5


class Nemesis:
    """Injects faults; `kills` and `pauses` count them.

    `every` is the number of operations between two faults, about; None: a second is between them.
    """

    def __init__(
        self,
        server: Server,
        workload: Workload,
        faults: Collection[str],
        random: Random,
        every: int | None,
    ) -> None:
        self.kills = 0
        #: how many of the kills hit between two steps of a write
        self.mid_write = 0
        self.pauses = 0
        self._server = server
        self._workload = workload
        self._faults = sorted(set(faults) - {"slow-disk"})
        self._random = random
        self._every = every

    async def run(self) -> None:
        """Inject faults until the run is over. Raises `ServerFailed` if the server ends by itself."""
        server, random = self._server, self._random
        ended = asyncio.create_task(server.wait())
        armed = False
        while not self._workload.over:
            await self._wait_beside(ended)
            fault = random.choice(self._faults) if self._faults else ""
            if not ended.done() and fault == "stop":
                self.pauses += 1
                server.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(random.random() * _PAUSE)
                server.process.send_signal(signal.SIGCONT)
            elif ended.done() or fault == "kill":
                self._check(ended, armed)
                await self._kill(ended)
                self._workload.incarnation += 1
                armed = random.random() < _MID_WRITE
                point = f"{random.choice(server.points)}=kill@{random.randint(1, 100)}"
                await server.start(*[point] if armed else [])
                ended = asyncio.create_task(server.wait())
        if "kill" in self._faults:
            # A write that has not reached the disk by now is lost here, and not later.
            await self._kill(ended)
            await server.start()
        else:
            ended.cancel()

    async def _kill(self, ended: "asyncio.Task[int]") -> None:
        self._server.process.kill()
        await ended
        self.kills += 1

    def _check(self, ended: "asyncio.Task[int]", armed: bool) -> None:
        """Raise `ServerFailed` unless the server runs, or was killed at its failpoint."""
        if ended.done():
            if not armed:
                raise self._server.process.failure(f"ended with status {ended.result()}")
            self.mid_write += 1

    async def _wait_beside(self, ended: "asyncio.Task[int]") -> None:
        """Wait until a fault is due, or the server has ended, or the run is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SECONDS * (0.5 + self._random.random())
        count = len(self._workload.history.operations)
        due = count + int((self._every or 0) * (0.5 + self._random.random()))
        while not (ended.done() or self._workload.over):
            count = len(self._workload.history.operations)
            if count >= due and (self._every is not None or loop.time() >= deadline):
                return
            await asyncio.sleep(RETRY_DELAY)
