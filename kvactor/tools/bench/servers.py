"""Server processes as the benchmark has them: pinned to a core, and measured through /proc."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from kvactor.tools.processes import ServerProcess

QUIET_SECONDS: Final = 10
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The benchmark cannot go on, for the reason given."""


class Memory(msgspec.Struct, frozen=True):
    """Resident memory in MiB: the process's own, and all of it with the mapped files."""

    anonymous: float
    resident: float


class Server(ServerProcess):
    """A running server that is measured; `name` is what reports call it."""

    def __init__(self, name: str, module: list[str]) -> None:
        super().__init__([sys.executable, "-m", *module])
        self.name = name
        self._proc = Path("/proc", str(self.pid))

    @property
    def address(self) -> str:
        """Its address and port."""
        return f"{self.host}:{self.port}"

    def check_alive(self) -> None:
        """Raise `ServerFailed` if the process has ended."""
        if not self.running:
            raise self.failure("ended during the run")

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far by all its threads, user and system (proc(5), stat)."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def settle(self) -> None:
        """Wait until it is idle: work put off is counted, and does not disturb the other."""
        until = time.monotonic() + QUIET_SECONDS
        before, now = -1.0, self.cpu_seconds()
        while now - before > 1.5 / _TICKS and time.monotonic() < until:
            time.sleep(0.1)
            before, now = now, self.cpu_seconds()

    def memory(self) -> Memory:
        """Return its resident memory (proc(5), smaps_rollup)."""
        lines = (self._proc / "smaps_rollup").read_text().splitlines()[1:]
        kib = {
            name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)
        }
        return Memory(kib["Anonymous"] / 1024, kib["Rss"] / 1024)


def machine_cpu_seconds() -> float:
    """Return the CPU time used so far by whatever runs here, and that taken by the hypervisor."""
    user, nice, system, _, _, _, _, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(int(ticks) for ticks in (user, nice, system, steal)) / _TICKS


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Let processes started inside run on `core` only, with all their threads. None: anywhere."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def serving(name: str, module: list[str], core: int | None) -> Iterator[Server]:
    """Run `python -m module...` as a server for as long as the block lasts.

    Raises `ServerFailed` if it does not start, or does not stop with status 0.
    """
    with pinned(core):
        server = Server(name, module)
    with server:
        server.wait_until_ready()
        yield server
        if server.stop():
            raise server.failure("did not stop well")
