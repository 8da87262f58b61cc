"""Copies of the tree, patched or not, and what is run in them: never what is installed, and never
longer than a limit.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.bugs import is_command

#: Seconds that whatever is told to stop has for it: tests that mount something unmount it again.
GRACE: Final = 30.0

#: How what was found begins if a run had to be stopped.
HANGS: Final = "a hang"

_PYTEST: Final = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")

#: Who has failed: a test, or a file that cannot even be read; and what a run of stress has found.
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
_VIOLATION: Final = re.compile(r"^VIOLATION: .+$", re.MULTILINE)


class Broken(Exception):
    """A copy that cannot be made, or does not even start: nothing can be said of it."""


class Ended(NamedTuple):
    """A run that has ended: `status` is None if it has hung, and had to be stopped."""

    status: int | None
    out: str


class Copy:
    """A tree in the directory `path`; what is run in it has its temporary files in `scratch`."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch

    def patch(self, patch: Path) -> None:
        """Apply a patch. Raises `Broken` if it does not fit, or the package cannot be imported then."""
        applied = subprocess.run(
            ["git", "apply", str(patch)],  # noqa: S607
            cwd=self.path,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(self.path.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        if applied.returncode:
            raise Broken(f"does not apply: {applied.stderr.strip()}")
        self.check()

    def check(self) -> None:
        """Raise `Broken` unless what is imported here is the copy."""
        ended = self.run(("-c", "import kvactor.cli; print(kvactor.cli.__file__)"), GRACE)
        if ended.status or Path(ended.out.strip()) != self.path / "kvactor" / "cli.py":
            raise Broken(f"cannot be imported: {ended.out.strip()}")

    def caught(self, catcher: Sequence[str], limit: float) -> str:
        """Return what a test, or a command, has found within `limit` seconds; empty if nothing.

        Raises `Broken` if it could not be run.
        """
        if is_command(tuple(catcher)):
            ended = self.run(catcher[1:], limit)
            found = _VIOLATION.findall(ended.out)
        else:
            ended = self.run((*_PYTEST, "-x", *catcher), limit)
            found = _FAILED.findall(ended.out)
        if ended.status is None:
            return f"{HANGS} for {limit:.0f} s: {' '.join(catcher)}"
        if ended.status == 0:
            return ""
        if not found or (not is_command(tuple(catcher)) and "::" not in found[0]):
            raise Broken(f"{' '.join(catcher)} cannot be run:\n{ended.out[-2000:]}")
        return found[0] if not is_command(tuple(catcher)) else f"{' '.join(catcher[1:3])}: {found[0]}"

    def passes(self, tests: Sequence[str], jobs: int, limit: float) -> str:
        """Run tests that have to pass; return what they say if they do not."""
        ended = self.run((*_PYTEST, "-n", str(jobs), *tests), limit)
        return "" if ended.status == 0 else ended.out

    def run(self, arguments: Sequence[str], limit: float) -> Ended:
        """Run Python with some arguments, for at most `limit` seconds."""
        self._scratch.mkdir(exist_ok=True)
        environ = {
            **os.environ,
            "PYTHONPATH": str(self.path),
            "TMPDIR": str(self._scratch),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        with (self._scratch / "output").open("w+") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.path,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
            out.seek(0)
            return Ended(status, out.read())


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that may still run: first so that it can tidy up, then with all it has started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def copied(tree: Path, into: Path) -> Iterator[Copy]:
    """Copy a whole tree; the copy is gone in the end."""
    home = Path(tempfile.mkdtemp(dir=into))
    try:
        shutil.copytree(tree, home / "tree", symlinks=True)
        yield Copy(home / "tree", home / "scratch")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def copy_sources(root: Path, to: Path) -> None:
    """Copy what git knows of, as it stands; where there is no repository, all but what is made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        made = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "dist", "kvactor-data")
        shutil.copytree(root, to, ignore=made)
        return
    for name in filter(None, listed.stdout.split("\0")):
        source = root / name
        if source.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)
