"""A server process: started, waited for, told to stop, killed. Benchmark, stress and tests share it.

A server prints one line with its address when it is ready. The rule: every wait has a deadline, and
`close` leaves nothing running and nothing open.

All calls block, briefly but for the waits; under asyncio, run those in a thread.
"""

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: Seconds for which a server is waited for, until it is ready or has ended.
TIMEOUT: Final = 120.0

_ADDRESS: Final = re.compile(r" http://(\S+?):(\d+)\b")

#: Bytes of the log that are read, at most.
_LOG_SIZE: Final = 1 << 24

#: Lines of a failed server's log that are shown.
_LINES: Final = 20


class ServerFailed(Exception):
    """A server did not start, or has ended otherwise than it was told to.

    `status` is its exit status, None while it runs, and `log` its standard error.
    """

    def __init__(self, what: str, status: int | None, log: str) -> None:
        end = log.splitlines()[-_LINES:]
        super().__init__("\n".join([f"the server {what}; its log ends with", *end]))
        self.status = status
        self.log = log


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without kvactor's settings, and with `more`."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("KVACTOR_")}
    return kept | dict(more or {})


class ServerProcess:
    """A server that was started by `command`, and that may have ended.

    Without `environ` it has that of `environment()`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.ready_line = ""
        self.host, self.port = "", 0
        #: seconds from the start of the process to its ready line
        self.ready_after = 0.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment() if environ is None else environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self, timeout: float = TIMEOUT) -> None:
        """Read the ready line. Raises `ServerFailed` if the process ends, or is silent for too long."""
        stdout = self._process.stdout
        readable = stdout is not None and select.select([stdout], [], [], timeout)[0]
        if stdout is None or not readable:
            raise self.failure(f"was not ready within {timeout:g} s")
        self.ready_line = stdout.readline().decode()
        found = _ADDRESS.search(self.ready_line)
        if found is None:
            self.wait(timeout)
            raise self.failure("did not start")
        self.ready_after = time.monotonic() - self._started
        self.host, self.port = found[1], int(found[2])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        # Not by seeking: the process writes at the same position.
        return os.pread(self._log.fileno(), _LOG_SIZE, 0).decode(errors="replace")

    def failure(self, what: str) -> ServerFailed:
        """Return the error that says what it did, with the end of its log."""
        return ServerFailed(what, self._process.poll(), self.log)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        self._process.send_signal(number)

    def wait(self, timeout: float | None = TIMEOUT) -> int:
        """Return its exit status, or minus the signal that ended it.

        Raises `ServerFailed` after `timeout` seconds; None: never.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not end within {timeout:g} s") from None

    def stop(self, timeout: float = TIMEOUT) -> int:
        """Ask it to stop; return as `wait` does."""
        self.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it as a crash does (kill -9)."""
        self._process.kill()
        self._process.wait()

    def rest_of_output(self, timeout: float = TIMEOUT) -> str:
        """Return what it wrote to standard output behind the ready line, once it has ended."""
        self.wait(timeout)
        return self._process.stdout.read().decode() if self._process.stdout else ""

    def close(self) -> None:
        """Kill it if it still runs, and let go of everything."""
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
