"""Server processes: started on a free port, pinned, measured through /proc, and stopped.

A server under test prints one line with its address when it is ready, and ends with status 0 on
SIGTERM.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

READY_SECONDS: Final = 120
STOP_SECONDS: Final = 60
QUIET_SECONDS: Final = 10
_LISTENING: Final = re.compile(r"http://(127\.0\.0\.1:\d+)")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The benchmark cannot go on, for the reason given."""


class Memory(msgspec.Struct, frozen=True):
    """Resident memory in MiB: the process's own, and all of it with the mapped files."""

    anonymous: float
    resident: float


class Server:
    """A running server: `host` is its address and port, `ready_ms` the time from start to ready."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.name = name
        self.host = ""
        self.ready_ms = 0.0
        self._process = process
        self._errors = errors
        self._proc = Path("/proc", str(process.pid))

    def wait_until_ready(self, started: float) -> None:
        """Read the line with the address. Raises BenchError after READY_SECONDS, or if it dies."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 (it was opened as a pipe)
        readable, _, _ = select.select([stdout], [], [], READY_SECONDS)
        line = stdout.readline() if readable else ""
        found = _LISTENING.search(line)
        if found is None:
            raise self.failure(f"not ready (said {line.strip()!r})")
        self.ready_ms = (time.perf_counter() - started) * 1e3
        self.host = found[1]

    def failure(self, what: str) -> BenchError:
        """Describe a failure with what the server wrote to stderr."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        status = self._process.poll()
        return BenchError(
            f"{self.name}: {what}; exit status {status}; stderr:\n{self._errors.read()[-4000:]}"
        )

    def check_alive(self) -> None:
        """Raise BenchError if the process has ended."""
        if self._process.poll() is not None:
            raise self.failure("ended during the run")

    def stop(self) -> None:
        """Ask it to end, and insist that it ends well."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not stop within {STOP_SECONDS} s") from None
        if status:
            raise self.failure("did not stop well")

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
    """Run `python -m module...` as a server for as long as the block lasts."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KVACTOR_")}
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        with pinned(core):
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        server = Server(name, process, errors)
        try:
            server.wait_until_ready(started)
            yield server
        except BaseException:
            process.kill()
            process.wait()
            raise
        server.stop()
