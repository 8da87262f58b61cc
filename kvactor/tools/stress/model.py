"""A naive model of the server: a dict of the keys that exist, and a stack of dicts for the writes of a
transaction.

The rule: the model knows nothing of how the server works.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from sortedcontainers import SortedDict

from kvactor.tools.stress.history import Changes, Step

#: Of each key its value, the revision that gave it (0: none yet), and when it expires, in milliseconds
#: since the epoch (0: never).
Entry = tuple[Any, int, int]
State = SortedDict[str, Entry]

#: A key and its revision, and whether it was found alive, or expired.
Look = tuple[str, int, bool]

#: The steps whose effects depend on what they find, even if no result is told.
_CONDITIONAL = frozenset({"cas", "delete", "increment", "delete_range"})

#: Keys that end before this one do.
_BEYOND = chr(0x10FFFF)


class Mismatch(Exception):
    """A step's result is not the model's. `index` is the step's."""

    def __init__(self, index: int, step: Step, expected: object) -> None:
        super().__init__(f"{step.what}({step.key}) was told {step.result!r} and not {expected!r}")
        self.index = index
        self.step = step


class Run:
    """Plays the steps of one operation on a state, which it leaves as it is.

    Keys of the state are there if they expire after `time` (0: whenever they expire). A transaction's
    own writes are there if they expire after the time of the step that looks.
    """

    def __init__(self, state: State, time: int = 0) -> None:
        #: of the keys that are changed, and that expire: when
        self.expiries: dict[str, int] = {}
        #: which keys that expire the steps have found alive or expired, as far as it matters
        self.looks: list[Look] = []
        self._state = state
        self._time = self._now = time
        self._looked: list[Look] = []
        self._levels: list[dict[str, Entry | None]] = [{}]

    def play(self, steps: Sequence[Step], told: int) -> Changes:
        """Return what the steps change. Raises `Mismatch` if one of the first `told` did not go so."""
        for index, step in enumerate(steps):
            self._now = step.time or self._time
            expected = STEPS[step.what](self, step.key, step.argument)
            if step.ttl and expected is not None:
                self._expire(step.key, self._now + step.ttl)
            if index < told and not agree(expected, step.result):
                raise Mismatch(index, step, expected)
            if step.what in _CONDITIONAL or (index < told and not _is_untold(step)):
                self.looks += self._looked
            self._looked.clear()
        changes = self._levels[0]
        for level in self._levels[1:]:
            changes = changes | level
        self.expiries = {key: entry[2] for key, entry in changes.items() if entry and entry[2]}
        return {
            key: entry and entry[0]
            for key, entry in changes.items()
            if entry is not None or key in self._state
        }

    def _look(self, key: str) -> Entry | None:
        for level in reversed(self._levels):
            if key in level:
                entry = level[key]
                return entry if entry is not None and _is_alive(entry, self._now) else None
        entry = self._state.get(key)
        if entry is None or not entry[2]:
            return entry
        alive = _is_alive(entry, self._time)
        self._looked.append((key, entry[1], alive))
        return entry if alive else None

    def _write(self, key: str, value: Any, expires_at: int = 0) -> None:
        self._levels[-1][key] = None if value is None else (value, 0, expires_at)

    def _expire(self, key: str, expires_at: int) -> None:
        entry = self._levels[-1][key]
        if entry is not None:
            self._write(key, entry[0], expires_at)

    def _between(
        self, start: str, end: str | None, reverse: bool = False
    ) -> Iterator[tuple[str, Entry]]:
        end = _BEYOND if end is None else end
        keys = set(self._state.irange(start, end, (True, False)))
        for level in self._levels:
            keys.update(key for key in level if start <= key < end)
        for key in sorted(keys, reverse=reverse):
            entry = self._look(key)
            if entry is not None:
                yield key, entry

    def put(self, key: str, value: Any) -> bool:
        """Give a key a value; is it new?"""
        new = self._look(key) is None
        self._write(key, value)
        return new

    def cas(self, key: str, argument: Any) -> bool:
        """Give a key a value if it has a revision (0: if it is not there); was that so?"""
        expected, value = argument
        so = self.check(key, expected)
        if so:
            self._write(key, value)
        return so

    def check(self, key: str, expected: Any) -> bool:
        """Has a key a revision (0: is it not there)?"""
        entry = self._look(key)
        return expected == 0 if entry is None else expected not in {0, None} and entry[1] == expected

    def get(self, key: str, _: Any) -> list[Any] | None:
        """Return a key's value and revision, or None."""
        entry = self._look(key)
        return None if entry is None else list(entry[:2])

    def delete(self, key: str, _: Any) -> bool:
        """Remove a key; was it there?"""
        there = self._look(key) is not None
        if there:
            self._write(key, None)
        return there

    def drop(self, key: str, _: Any) -> None:
        """Remove a key, there or not: a deletion of which nobody is told any more what it found."""
        self._write(key, None)

    def increment(self, key: str, by: Any) -> int:
        """Add to a key's number."""
        entry = self._look(key)
        value, _, expires_at = entry or (0, 0, 0)
        total: int = value + by
        self._write(key, total, expires_at)
        return total

    def scan(self, start: str, argument: Any) -> list[list[Any]]:
        """Return keys with values and revisions from one on: up to where, how many, last first?"""
        end, limit, reverse = argument
        # No key beyond the limit is looked at.
        found = islice(self._between(start, end, reverse), limit)
        return [[key, *entry[:2]] for key, entry in found]

    def delete_range(self, start: str, end: Any) -> int:
        """Remove the keys from one up to another; how many?"""
        keys = [key for key, _ in self._between(start, end)]
        for key in keys:
            self._write(key, None)
        return len(keys)

    def begin(self, _: str, __: Any) -> None:
        """Go one level deeper."""
        self._levels.append({})

    def rollback(self, _: str, __: Any) -> None:
        """Forget the level."""
        self._levels.pop()

    def commit(self, _: str, __: Any) -> None:
        """Hand the level to the one below."""
        level = self._levels.pop()
        self._levels[-1].update(level)


#: Every step that there is.
STEPS: dict[str, Callable[[Run, str, Any], object]] = {
    step.__name__: step
    for step in (
        *(
            Run.put,
            Run.cas,
            Run.check,
            Run.get,
            Run.delete,
            Run.drop,
            Run.increment,
            Run.scan,
            Run.delete_range,
        ),
        *(Run.begin, Run.rollback, Run.commit),
    )
}


def _is_alive(entry: Entry, time: int) -> bool:
    return not (entry[2] and time) or entry[2] > time


def _is_untold(step: Step) -> bool:
    """Return whether a response did not say if a put found its key."""
    return step.what == "put" and step.result is None


def agree(expected: Any, told: Any) -> bool:
    """Return whether a result is the expected one. Where `told` has None in the place of a revision, or
    of whether a key is new, the response did not say it, and anything agrees.
    """
    if isinstance(expected, list) and isinstance(told, list) and len(expected) == len(told):
        return all(agree(one, other) for one, other in zip(expected, told, strict=True))
    return expected == told or (told is None and isinstance(expected, bool | int))
