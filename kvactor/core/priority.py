"""Priority of retried transactions: one that conflicts again and again gets through in the end.

The rule: at most one open transaction has priority, for a bounded time, and only as long as its client
is quick. A write of something that it has read waits until it has ended, but no longer than
`priority_wait`. Then a plain write goes on, and the transaction conflicts; a commit conflicts itself,
because the older one wins ("wound-wait":
Rosenkrantz, Stearns, Lewis, "System Level Concurrency Control for Distributed Database Systems", 1978).
"""

from collections.abc import Collection
from typing import Final

from kvactor.core.conflicts import ConflictIndex
from kvactor.core.memory import Client
from kvactor.core.transaction import State, Transaction

#: Conflicts in a row after which the next try has priority.
CONFLICTS: Final = 3

#: A transaction has priority for so many times `priority_wait`.
TERM: Final = 20

#: Opens that wait for priority, at most; more transactions open without it. Each waits for at most so
#: many times `priority_wait`, and then opens without it.
QUEUE: Final = 100

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
        #: the transaction that has priority; it may have ended, see `held`
        self.holder: Transaction | None = None
        self._until = 0
        #: opens that wait for priority
        self.queue = 0
        #: who had it last; None: nobody yet
        self.last: Client | None = None

    @property
    def until(self) -> int:
        """When the priority ends at the latest, in milliseconds since the epoch: after its term, or
        `priority_wait` after the last request.
        """
        holder = self.holder
        if holder is None or holder.state is not State.OPEN:
            return 0
        return min(self._until, holder.last_used + self.wait)

    def held(self, now: int) -> bool:
        """Has an open transaction priority?"""
        holder = self.holder
        if holder is not None and now >= self.until:
            self.holder = holder = None
        return holder is not None

    def grant(self, transaction: Transaction, client: Client, now: int) -> None:
        """Give priority to a transaction that is open."""
        self.holder, self.last = transaction, client
        self._until = now + TERM * self.wait

    def stop(self) -> None:
        """End the priority for good: nobody waits for it any more."""
        self.holder, self.wait = None, 0

    @property
    def queue_wait(self) -> int:
        """How long an open waits for priority at most, in milliseconds."""
        return QUEUE * self.wait

    def guards(self, keys: Collection[bytes], by: Transaction | None, now: int) -> bool:
        """Would a write of these keys, by another transaction or by none, doom the one with priority?

        Costs O(k) for k keys, and O(k log r) more if it has read r ranges.
        """
        holder = self.holder
        if holder is None or holder is by or len(keys) > MAX_KEYS:
            return False
        return self.held(now) and self._conflicts.saw_any(holder, keys)
