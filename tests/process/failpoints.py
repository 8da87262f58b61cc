"""`python -m tests.process.failpoints ACTION POINT NTH serve ...`: a server to which something happens
when it comes to a point of its work for the NTH time.

    kill      it is killed, as by kill -9
    hold      the thread that came there stays there, and a line in the log says so
    fail      what is to be done there, or was just done, reports an input/output error
    signal    it is told to stop, as by SIGTERM
"""

import errno
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final
from unittest.mock import patch

from kvactor import replies
from kvactor.cli import main
from kvactor.storage.journal import LmdbJournal
from kvactor.storage.tree import LmdbTree
from kvactor.store import Store

Act = Callable[[], None]
Step = Callable[..., Any]


def _before(act: Act, step: Step) -> Step:
    @wraps(step)
    def wrapper(*arguments: Any) -> Any:
        act()
        return step(*arguments)

    return wrapper


def _after(act: Act, step: Step) -> Step:
    @wraps(step)
    def wrapper(*arguments: Any) -> Any:
        result = step(*arguments)
        act()
        return result

    return wrapper


def _within(act: Act, step: Step) -> Step:
    """Act when all is written, but not yet committed."""

    @wraps(step)
    def wrapper(self: Any, items: Any, *more: Any) -> Any:
        return step(self, _Items(items, act), *more)

    return wrapper


class _Items:
    """A list, or a mapping of which only the items are asked for, that acts when it is at its end."""

    def __init__(self, items: Any, act: Act) -> None:
        self._items = items
        self._act = act

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        yield from self._items
        self._act()

    def items(self) -> "_Items":
        return _Items(self._items.items(), self._act)


#: The points of a write's way from the socket down to the tree between which the disk, or what its
#: client knows, is not the same.
WRITE: Final[dict[str, tuple[Any, str, Callable[[Act, Step], Step]]]] = {
    "staged": (Store, "stage", _after),
    "journal written": (LmdbJournal, "_flush", _within),
    "journal committed": (LmdbJournal, "_flush", _after),
    "answered": (replies, "deliver", _after),
    "tree written": (LmdbTree, "_fold", _within),
    "tree committed": (LmdbTree, "_fold", _after),
}
POINTS: Final = WRITE | {"ready": (sys.stdout, "flush", _after)}


def failpoint(action: str, point: str, nth: int = 1) -> tuple[str, ...]:
    """Return the program to be run in the place of `kvactor`."""
    return ("-m", "tests.process.failpoints", action, point, str(nth))


def held(point: str) -> str:
    """Return what the log says of a thread that is held."""
    return f"held: {point}"


def _act(action: str, point: str, nth: int) -> Act:
    passed = itertools.count(1)

    def act() -> None:
        if next(passed) != nth:
            return
        match action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hold":
                sys.stderr.write(f"{held(point)}\n")
                sys.stderr.flush()
                threading.Event().wait()
            case "fail":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            case "signal":
                os.kill(os.getpid(), signal.SIGTERM)

    return act


if __name__ == "__main__":
    action, point, nth, *arguments = sys.argv[1:]
    target, name, wrap = POINTS[point]
    with patch.object(target, name, wrap(_act(action, point, int(nth)), getattr(target, name))):
        sys.exit(main(arguments))
