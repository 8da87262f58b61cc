"""Copies of the tree, mutated or not, and the tests and commands that run in them.

The rule: a copy runs its own code, never what is installed, and never longer than a limit.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.mutants.edits import Refused
from tests.mutants.mutant import Mutant, is_command

#: Seconds that a run has to stop when it is told to: tests that mount something unmount it again.
GRACE: Final = 30.0

#: The beginning of what is reported of a run that had to be stopped.
HANGS: Final = "a hang"

_PYTEST: Final = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")

#: A failed test, or a file that cannot be read; and a violation that a run of stress reports.
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
_VIOLATION: Final = re.compile(r"^VIOLATION: .+$", re.MULTILINE)


class Broken(Exception):
    """A copy that cannot be made or started, or a killer that cannot be run in it."""


class Ended(NamedTuple):
    """A run that has ended; `status` is None if it hung and had to be stopped."""

    status: int | None
    out: str


class Copy:
    """A tree in the directory `path`; what is run in it has its temporary files in `scratch`."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch

    def mutate(self, mutant: Mutant) -> None:
        """Make a mutant. Raises `Broken` if it cannot be made, or cannot be imported."""
        try:
            files = mutant.files(self.path)
        except (Refused, OSError) as error:
            raise Broken(f"cannot be made: {error}") from error
        for file, text in files.items():
            (self.path / file).write_text(text, "utf-8")
        self.check()

    def check(self) -> None:
        """Raise `Broken` unless what is imported here is the copy."""
        ended = self.run(("-c", "import kvactor.cli; print(kvactor.__file__)"), GRACE)
        if ended.status or Path(ended.out.strip()) != self.path / "kvactor" / "__init__.py":
            raise Broken(f"cannot be imported: {ended.out.strip()}")

    def fails(self, killer: str, limit: float) -> str:
        """Return what a test or a command reports as failed within `limit` seconds; empty if nothing.

        Raises `Broken` if it cannot be run.
        """
        words = shlex.split(killer)
        if is_command(killer):
            ended = self.run(words[1:], limit)
            found = _VIOLATION.findall(ended.out)
        else:
            ended = self.run((*_PYTEST, "-x", *words), limit)
            found = _FAILED.findall(ended.out)
        if ended.status is None:
            return f"{HANGS} for {limit:.0f} s: {killer}"
        if ended.status == 0:
            return ""
        if not found or (not is_command(killer) and "::" not in found[0]):
            raise Broken(f"{killer} cannot be run:\n{ended.out[-2000:]}")
        return f"{' '.join(words[1:3])}: {found[0]}" if is_command(killer) else found[0]

    def passes(self, tests: Sequence[str], jobs: int, limit: float) -> str:
        """Run tests that have to pass; return their output if one fails."""
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
    """Copy what git knows of, as it exists; where there is no repository, all but what is made."""
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
