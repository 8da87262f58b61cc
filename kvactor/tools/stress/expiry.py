"""Expiry as an event: each version of a key expires once, for all operations alike.

The rule: an operation that found a version expired comes behind all that found it alive. By revision a
read may seem to come before one of them, and be true at the newer revision, too: there it is played
again, and has to get the same results. A writer has no such excuse, and real time allows none.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

from kvactor.tools.stress.history import Operation
from kvactor.tools.stress.model import Look

#: A key and the revision that gave its value.
Version = tuple[str, int]

#: An operation, and the revision at which it happened.
Placed = tuple[Operation, int]


class Expiries:
    """Which operations found versions expired, and which found them alive.

    Operations are added in the order of their revisions. `holds` plays an operation on the state as it
    is, and returns whether its results are the same and it changes nothing.
    """

    def __init__(self, holds: Callable[[Operation], bool]) -> None:
        self._holds = holds
        self._expired: dict[Version, list[Placed]] = defaultdict(list)
        #: of each version the operation that began last of those that found it alive
        self._alive: dict[Version, Placed] = {}

    def add(self, one: Operation, at: int, looks: Iterable[Look]) -> tuple[Placed, Placed, str] | None:
        """Add an operation that happened at a revision.

        Return the operation that found a version expired, the one that found it alive although it comes
        behind, and the version's key; or None if there are no such two.
        """
        for key, revision, alive in looks:
            version = key, revision
            if not alive:
                last = self._alive.get(version)
                if last is not None and one.ended < last[0].began:
                    return (one, at), last, key
                self._expired[version].append((one, at))
                continue
            for other, since in self._expired.get(version, ()):
                behind = since < at and not self._holds(other)
                if behind or other.ended < one.began:
                    return (other, since), (one, at), key
            last = self._alive.get(version)
            if last is None or one.began > last[0].began:
                self._alive[version] = one, at
        return None
