"""Failpoints: named steps of a write on its way to the disk, at which a test lets the server die, fail
or wait.

The rule: without `KVACTOR_FAILPOINTS` no function is changed. With it, the functions that it names are
replaced at the start, before there is an owner:

    KVACTOR_FAILPOINTS=flush.after=kill@5,fold.written=delay:20

    kill        SIGKILL, to the process itself
    error       an input/output error, raised there
    signal      SIGTERM, to the process itself
    delay:20    a wait of so many milliseconds

The number behind `@` is that of the arrival, counted from 1; without it, every arrival counts. The
first time, a line in the log comes before the action. A delay in a flush or a fold blocks the thread
of the journal or the tree; everywhere else it blocks the owner, and with it the event loop.
"""

import errno
import itertools
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final, NamedTuple

from kvactor.core import replies
from kvactor.core.feed import Feed
from kvactor.core.store import Store
from kvactor.settings import FAILPOINTS, suggestion
from kvactor.storage.journal import LmdbJournal
from kvactor.storage.tree import LmdbTree

log = logging.getLogger(__name__)

Step = Callable[..., Any]
Act = Callable[[], None]


def _before(act: Act, step: Step) -> Step:
    @wraps(step)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        act()
        return step(*arguments, **named)

    return wrapper


def _after(act: Act, step: Step) -> Step:
    @wraps(step)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        result = step(*arguments, **named)
        act()
        return result

    return wrapper


#: The steps of a write, in order, each a function that callers look up in a class or a module at each
#: call. A flush and a fold end with their commit to disk; a trim is a part of a flush.
STEPS: Final[Mapping[str, tuple[Any, str]]] = {
    "stage": (Store, "stage"),
    "append": (LmdbJournal, "append"),
    "flush": (LmdbJournal, "_flush"),
    "trim": (LmdbJournal, "_trim"),
    "apply": (Store, "apply"),
    "reply": (replies, "deliver"),
    "publish": (Feed, "publish"),
    "fold": (LmdbTree, "_fold"),
}


class Point(NamedTuple):
    """A function of `owner`, a class or a module; the point is before or after it."""

    owner: Any
    name: str
    wrap: Callable[[Act, Step], Step]


#: Every failpoint there is. At `written`, all is written and nothing committed.
POINTS: Final[Mapping[str, Point]] = {
    f"{step}.{side}": Point(*function, wrap)
    for step, function in STEPS.items()
    for side, wrap in (("before", _before), ("after", _after))
} | {
    "flush.written": Point(LmdbJournal, "_write", _after),
    "fold.written": Point(LmdbTree, "_write", _after),
}

_ACTION: Final = re.compile(r"(kill|error|signal|delay:(?P<delay>\d{1,9}))(@(?P<nth>[1-9]\d{0,8}))?")


class Failpoint(NamedTuple):
    """The action at a point.

    `delay` is in milliseconds, 0 for the other actions; `nth` is 0 for every arrival.
    """

    text: str
    action: str
    delay: int
    nth: int


def parse(text: str) -> dict[str, Failpoint]:
    """Return the failpoints that a value of `KVACTOR_FAILPOINTS` names, by the name of the point.

    Raises `ValueError` with a sentence that names the mistake.
    """
    failpoints: dict[str, Failpoint] = {}
    for one in filter(None, text.split(",")):
        name, _, what = one.strip().partition("=")
        if name not in POINTS:
            raise ValueError(
                f"{FAILPOINTS}: {name!r} is no failpoint. {suggestion(name, POINTS, '')}"
                f"They are {', '.join(POINTS)}."
            )
        if name in failpoints:
            raise ValueError(f"{FAILPOINTS}: {name} is named twice.")
        found = _ACTION.fullmatch(what)
        if found is None:
            raise ValueError(
                f"{FAILPOINTS}: {what!r} cannot be done at {name}. It is one of kill, error, signal "
                "and delay:MILLISECONDS, perhaps with @N behind it for the Nth arrival alone."
            )
        action = found[1].partition(":")[0]
        failpoints[name] = Failpoint(what, action, int(found["delay"] or 0), int(found["nth"] or 0))
    return failpoints


def arm(failpoints: Mapping[str, Failpoint]) -> None:
    """Replace the functions of `failpoints`, for as long as the process lives."""
    for name, failpoint in failpoints.items():
        owner, attribute, wrap = POINTS[name]
        log.warning("failpoint %s is armed: %s", name, failpoint.text)
        setattr(owner, attribute, wrap(_act(name, failpoint), getattr(owner, attribute)))


def reached(name: str) -> str:
    """Return the log's words for a failpoint that is reached for the first time."""
    return f"failpoint {name} is reached"


def _act(name: str, failpoint: Failpoint) -> Act:
    arrivals = itertools.count(1)
    first = failpoint.nth or 1

    def act() -> None:
        arrival = next(arrivals)
        if failpoint.nth not in {0, arrival}:
            return
        if arrival == first:
            log.warning("%s: %s", reached(name), failpoint.text)
        match failpoint.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "error":
                raise OSError(errno.EIO, os.strerror(errno.EIO), name)
            case "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            case "delay":
                time.sleep(failpoint.delay / 1000)

    return act
