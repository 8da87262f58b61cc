"""Priority of retried transactions: one that conflicts again and again gets through in the end.

The rule: at most one open transaction has priority, for a bounded time. A write of something that it
has read waits until it has ended, but no longer than `priority_wait`. Then a plain write goes on, and
the transaction conflicts; a commit conflicts itself, because the older one wins ("wound-wait":
Rosenkrantz, Stearns, Lewis, "System Level Concurrency Control for Distributed Database Systems", 1978).
"""

from collections.abc import Collection
from typing import Final

from kvactor.core.conflicts import ConflictIndex
from kvactor.core.transaction import State, Transaction

#: Conflicts in a row after which the next try has priority.
CONFLICTS: Final = 3

#: A transaction has priority for so many times `priority_wait`.
LASTS: Final = 20

#: Transactions that wait for priority before they open, at most; more open without it.
LINE: Final = 100

#: A write of more keys does not wait: to look for those that were read would take long.
MAX_KEYS: Final = 1000


class MustWait(Exception):
    """A message has to wait for a transaction with priority. Nothing was done.

    `until` is when it is handled at the latest, in milliseconds since the epoch.
    """

    def __init__(self, until: int) -> None:
        super().__init__()
        self.until = until


class Priority:
    """The transaction that has priority, if one has. `wait` is `priority_wait`, in milliseconds;
    `conflicts` knows what it has read.
    """

    def __init__(self, wait: int, conflicts: ConflictIndex[Transaction]) -> None:
        self.wait = wait
        self._conflicts = conflicts
        self._holder: Transaction | None = None
        self._until = 0

    @property
    def until(self) -> int:
        """When the priority ends at the latest, in milliseconds since the epoch."""
        return self._until

    def held(self, now: int) -> bool:
        """Has an open transaction priority?"""
        holder = self._holder
        if holder is not None and (holder.state is not State.OPEN or now >= self._until):
            self._holder = holder = None
        return holder is not None

    def grant(self, transaction: Transaction, now: int) -> None:
        """Give priority to a transaction that is open."""
        self._holder = transaction
        self._until = now + LASTS * self.wait

    @property
    def line_wait(self) -> int:
        """How long an open waits for priority at most, in milliseconds."""
        return LINE * LASTS * self.wait

    def guards(self, keys: Collection[bytes], by: Transaction | None, now: int) -> bool:
        """Would a write of these keys, by another transaction or by none, doom the one with priority?

        Costs O(k) for k keys, and O(k log r) more if it has read r ranges.
        """
        holder = self._holder
        if holder is None or holder is by or len(keys) > MAX_KEYS:
            return False
        return self.held(now) and self._conflicts.saw_any(holder, keys)
