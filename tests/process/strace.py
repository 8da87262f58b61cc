"""System calls of a server's that fail, or at which it is killed, where strace may be used."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

#: The server stays the test's own child, and its threads are followed.
_STRACE: Final = ("strace", "-D", "-f", "-o", "/dev/null")


def inject(file: Path, call: str, what: str, nth: int) -> tuple[str, ...]:
    """Return the prefix to a server's command that lets `what` happen to the nth system call `call`
    that a thread makes on `file`. Skips the test if it cannot be done here.
    """
    why_not = _why_not()
    if why_not:
        pytest.skip(why_not)
    return (*_STRACE, "-P", str(file), "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={nth}")


@cache
def _why_not() -> str:
    try:
        tried = subprocess.run([*_STRACE, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "strace is not installed"
    return "" if tried.returncode == 0 else f"strace cannot be used: {tried.stderr.strip()}"
