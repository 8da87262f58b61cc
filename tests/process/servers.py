"""Servers as tests start them, and programs that end. Every wait is bounded by `PATIENCE`."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import kvactor
from kvactor.tools import processes
from kvactor.tools.processes import ServerProcess

#: Seconds after which a wait has failed.
PATIENCE: Final = 30.0

_READY: Final = re.compile(r"kvactor (\S+) ready at http://\S+, (data in .+), revision (\d+)\n")

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
    # Without kept bytecode every one of the many starts would compile everything anew.
    ours = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(roots)), "PYTHONDONTWRITEBYTECODE": ""}
    return processes.environment(ours | dict(more or {}))


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


class Server(ServerProcess):
    """A kvactor that serves, or that has ended. `prefix` is a command that runs it, if any.

    Raises `ServerFailed` if it does not start.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = KVACTOR,
        prefix: Sequence[str] = (),
    ) -> None:
        self.data_dir = cwd / "data"
        super().__init__(
            [*prefix, sys.executable, *program, "serve", "--port", "0", *arguments],
            cwd=cwd,
            environ=environment(environ),
        )
        try:
            self.wait_until_ready(PATIENCE)
        except BaseException:
            self.close()
            raise
        found = _READY.fullmatch(self.ready_line)
        assert found is not None, self.ready_line
        self.version, self.where, self.revision = found[1], found[2], int(found[3])

    def wait_for_log(self, text: str) -> None:
        """Wait until `text` is in the log."""
        until(lambda: text in self.log, f"{text!r} in the log:\n{self.log}")

    def wait(self, timeout: float | None = PATIENCE) -> int:
        """Return its exit status, or minus the signal that ended it. Raises `ServerFailed`."""
        return super().wait(timeout)

    def memory(self) -> int:
        """Return the bytes of memory that are its own, and not a file's that it has mapped."""
        rollup = Path("/proc", str(self.pid), "smaps_rollup").read_text()
        found = re.search(r"^Anonymous: +(\d+) kB$", rollup, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"no anonymous memory in {rollup!r}")
        return int(found[1]) * 1024
