"""Bugs on purpose: small patches, each of which breaks one promise of the README. `python -m
tests.bugs` applies each to a copy of the tree, and says which test has caught it. One that nothing
catches is a hole in the tests.

The rule: a patch is what a tired programmer, or somebody in want of speed, might have written; it is no
crash that every test finds. Its head says what is wrong, and why somebody would do so; then

    Promise: P3
    Caught by: tests/test_promises.py::test_p3_...

`Caught by` is what is meant to find it: tests as pytest takes them, or a run of
`python -m kvactor.tools.stress`.
There may be several, tried in this order, and behind them all others.
"""

import re
import shlex
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).parent

PROMISES: Final = tuple(f"P{number}" for number in range(1, 11))

_FIELD: Final = re.compile(r"^(Promise|Caught by): *(.+)$", re.MULTILINE)


class Bug(NamedTuple):
    """A patch, and what its head says. `catchers` are arguments of pytest, or whole commands."""

    path: Path
    promise: str
    catchers: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """Return what it is called."""
        return self.path.stem


def load(path: Path) -> Bug:
    """Read a patch's head. Raises `ValueError` unless it names one promise, and what catches it."""
    head = path.read_text().partition("\n--- a/")[0]
    fields = _FIELD.findall(head)
    promises = [text for name, text in fields if name == "Promise"]
    catchers = tuple(tuple(shlex.split(text)) for name, text in fields if name == "Caught by")
    if len(promises) != 1 or promises[0] not in PROMISES or not catchers:
        raise ValueError(f"{path.name} has to name one promise of {PROMISES}, and what catches it")
    return Bug(path, promises[0], catchers)


def bugs() -> list[Bug]:
    """Return all bugs, in the order of the promises."""
    found = map(load, sorted(HERE.glob("*.patch")))
    return sorted(found, key=lambda bug: PROMISES.index(bug.promise))


def is_command(catcher: tuple[str, ...]) -> bool:
    """Is this a command, and not what pytest is given?"""
    return catcher[0] == "python"
