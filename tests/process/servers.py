"""Server processes, and the waiting for them. Every wait is bounded by `PATIENCE`."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import kvactor

#: Seconds after which whatever is waited for has failed to happen.
PATIENCE: Final = 30.0

_READY: Final = re.compile(r"kvactor (\S+) ready at http://(\S+):(\d+), (data in .+), revision (\d+)\n")

KVACTOR: Final = ("-m", "kvactor")


def until(happened: Callable[[], bool], what: str) -> None:
    """Poll until something has happened."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.002)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which `kvactor` and `tests` are found, without settings but `more`."""
    roots = [str(Path(kvactor.__file__).parents[1]), str(Path(__file__).parents[2])]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("KVACTOR_")}
    # Without kept bytecode every one of the many starts would compile everything anew.
    ours = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(roots)), "PYTHONDONTWRITEBYTECODE": ""}
    return kept | ours | dict(more or {})


class Ended(NamedTuple):
    """A process that has ended by itself."""

    status: int
    out: str
    log: str


def run(
    *arguments: str,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    program: Sequence[str] = KVACTOR,
    patience: float = PATIENCE,
) -> Ended:
    """Run `kvactor`, or another program, to its end."""
    ended = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        env=environment(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def refusal(cwd: Path, data_dir: Path, *arguments: str) -> str:
    """Have a start refused with exit status 1, and return the one line that says why."""
    ended = run("serve", "--port", "0", "--data-dir", str(data_dir), *arguments, cwd=cwd)
    assert (ended.status, ended.out) == (1, "")
    assert re.fullmatch(r"kvactor: .+\n", ended.log), ended.log
    return ended.log


class NotReady(Exception):
    """A server has ended without a ready line."""

    def __init__(self, status: int, log: str) -> None:
        super().__init__(f"exit status {status}\n{log}")
        self.status = status
        self.log = log


class Server:
    """A process that serves, or that has ended. `prefix` is a command that runs it, if any."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = KVACTOR,
        prefix: Sequence[str] = (),
    ) -> None:
        self.data_dir = cwd / "data"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        started = time.monotonic()
        self._process = subprocess.Popen(
            [*prefix, sys.executable, *program, "serve", "--port", "0", *arguments],
            cwd=cwd,
            env=environment(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self.ready_line = self._read_line()
            found = _READY.fullmatch(self.ready_line)
            if found is None:
                raise NotReady(self.wait(), self.log)
        except BaseException:
            self.close()
            raise
        #: seconds from the start of the process to the ready line
        self.ready_after = time.monotonic() - started
        self.version, self.host, self.where = found[1], found[2], found[4]
        self.port, self.revision = int(found[3]), int(found[5])

    def _read_line(self) -> str:
        stdout = self._process.stdout
        if stdout is None or not select.select([stdout], [], [], PATIENCE)[0]:
            raise TimeoutError(f"nothing on standard output\n{self.log}")
        return stdout.readline().decode()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        # Not by seeking: the process writes at the same position.
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()

    def wait_for_log(self, text: str) -> None:
        """Wait until `text` is in the log."""
        until(lambda: text in self.log, f"{text!r} in the log:\n{self.log}")

    def tell(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; return the exit status, or minus the signal that ended it."""
        return self._process.wait(PATIENCE)

    def stop(self) -> int:
        """Ask it to stop; return the exit status."""
        self.tell(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it as a crash does (kill -9)."""
        self._process.kill()
        self.wait()

    def rest_of_output(self) -> str:
        """Return what it wrote to standard output behind the ready line, once it has ended."""
        self.wait()
        return self._process.stdout.read().decode() if self._process.stdout else ""

    def memory(self) -> int:
        """Return the bytes of memory that are its own, and not a file's that it has mapped."""
        rollup = Path("/proc", str(self.pid), "smaps_rollup").read_text()
        found = re.search(r"^Anonymous: +(\d+) kB$", rollup, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"no anonymous memory in {rollup!r}")
        return int(found[1]) * 1024

    def close(self) -> None:
        """Kill it if it still runs, and let go of everything."""
        self._process.kill()
        self._process.wait(PATIENCE)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
