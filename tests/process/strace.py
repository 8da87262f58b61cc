"""System calls of a server's that fail, or at which it is killed, where strace may be used."""

import subprocess
from functools import cache
from itertools import dropwhile
from pathlib import Path
from typing import Final

import pytest

from tests.process.servers import until

#: The server stays the test's own child, and its threads are followed.
_STRACE: Final = ("strace", "-D", "-f")

#: The calls with which LMDB writes its pages, one or several, has them go to disk, and makes a commit
#: of them. (The last is a `pwrite64`, too, through a descriptor that waits for the disk.)
CALLS: Final = ("pwrite64", "writev", "fdatasync")


def inject(
    file: Path, call: str, what: str, nth: int, log: Path = Path("/dev/null")
) -> tuple[str, ...]:
    """Return the prefix to a server's command that lets `what` happen to the nth system call `call`
    that a thread makes on `file`. All `CALLS` on it are noted in `log`.

    Skips the test if it cannot be done here.
    """
    why_not = _why_not()
    if why_not:
        pytest.skip(why_not)
    which = ("-P", str(file), "-e", f"trace={','.join(CALLS)}")
    return (*_STRACE, "-o", str(log), *which, "-e", f"inject={call}:{what}:when={nth}")


def calls_since(log: Path) -> list[str]:
    """Return which calls a server that has ended made on the file, from the one that failed on."""
    until(lambda: "+++ exited with" in log.read_text(), "the end of strace's log")
    lines = dropwhile(lambda line: "(INJECTED)" not in line, log.read_text().splitlines())
    found = (call for line in lines for call in CALLS if f" {call}(" in line)
    return list(found)


@cache
def _why_not() -> str:
    command = [*_STRACE, "-o", "/dev/null", "true"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "strace is not installed"
    return "" if tried.returncode == 0 else f"strace cannot be used: {tried.stderr.strip()}"
