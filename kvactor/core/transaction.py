"""A transaction: a stack of overlays, a state, and the revision that it depends on.

The rule: `TRANSITIONS` says what may happen to a transaction in which state. Everything else is
refused before it has an effect.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from kvactor.core.conflicts import ReadSet
from kvactor.core.memory import UNCOUNTED, Lease
from kvactor.core.overlay import Items, Overlay
from kvactor.core.records import MISSING, NEVER, Entry, Missing
from kvactor.core.work import Work
from kvactor.errors import KvactorError, TransactionConflict, TransactionNotFound


class Kind(Enum):
    """The three kinds of transactions."""

    #: of one request that names no transaction; it ends with the request
    AUTOCOMMIT = auto()
    #: the one of the simple routes; it has no read set
    SHARED = auto()
    #: has an id and a read set
    ISOLATED = auto()


class State(Enum):
    """The states of a transaction."""

    OPEN = "open"
    #: it has read something that a later write has changed
    CONFLICTED = "conflicted"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    #: it was idle for too long and was rolled back
    EXPIRED = "expired"


class Event(Enum):
    """What can happen to a transaction. Begin, release and rollback-to concern an inner level."""

    USE = auto()
    BEGIN = auto()
    RELEASE = auto()
    ROLLBACK_TO = auto()
    COMMIT = auto()
    ROLLBACK = auto()
    CONFLICT = auto()
    EXPIRE = auto()


#: The legal transitions.
TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    State.OPEN: {
        Event.USE: State.OPEN,
        Event.BEGIN: State.OPEN,
        Event.RELEASE: State.OPEN,
        Event.ROLLBACK_TO: State.OPEN,
        Event.COMMIT: State.COMMITTED,
        Event.ROLLBACK: State.ROLLED_BACK,
        Event.CONFLICT: State.CONFLICTED,
        Event.EXPIRE: State.EXPIRED,
    },
    State.CONFLICTED: {
        Event.ROLLBACK: State.ROLLED_BACK,
        Event.CONFLICT: State.CONFLICTED,
        Event.EXPIRE: State.EXPIRED,
    },
    # A client that lost the answer may repeat its commit.
    State.COMMITTED: {Event.COMMIT: State.COMMITTED},
    State.ROLLED_BACK: {},
    State.EXPIRED: {},
}


#: What a transaction without a level takes, and a level without an entry, about, in bytes.
TRANSACTION_OVERHEAD: Final = 2200
LEVEL_OVERHEAD: Final = 730


class Transaction:
    """A stack of overlays with an idle time limit. Times are milliseconds since the epoch.

    `idle_timeout` is in milliseconds; NEVER is no limit.
    """

    __slots__ = (
        "conflicts",
        "depends_on",
        "drafts",
        "id",
        "idle_timeout",
        "keeps",
        "kind",
        "last_used",
        "lease",
        "opened_at",
        "overlays",
        "reads",
        "size",
        "state",
        "warned",
    )

    def __init__(
        self,
        kind: Kind,
        now: int,
        idle_timeout: int = NEVER,
        id_: str | None = None,
        lease: Lease = UNCOUNTED,
    ) -> None:
        self.kind = kind
        #: its bytes in the account of memory
        self.lease = lease
        #: None unless it is isolated
        self.id = id_
        self.state = State.OPEN
        self.opened_at = self.last_used = now
        self.idle_timeout = idle_timeout
        self.overlays = [Overlay()]
        self.reads = ReadSet()
        #: how many drafts were ever written in it, dropped ones too
        self.drafts = 0
        #: the newest revision that an answer to this transaction depends on; it may be only staged
        self.depends_on = 0
        #: whether it has kept a response for an idempotency key
        self.keeps = False
        #: whether the log has a warning that it stays open
        self.warned = False
        #: in a row: its own, and those of the transactions that it is a retry of
        self.conflicts = 0
        #: bytes of memory that its writes and reads take, about; `grow` changes it
        self.size = TRANSACTION_OVERHEAD + LEVEL_OVERHEAD

    @property
    def depth(self) -> int:
        """How many levels are open; 0: it has ended."""
        return len(self.overlays)

    def grow(self, by: int) -> None:
        """Count bytes of memory; negative: they are given back."""
        self.size += by

    @property
    def expires_at(self) -> int:
        """When its idle timeout ends."""
        return min(self.last_used + self.idle_timeout, NEVER)

    def move(self, event: Event) -> None:
        """Take the transition of `event`.

        Raises `TransactionConflict` or `TransactionNotFound` if the table has none.
        """
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            raise refusal(self.state, self.depends_on)
        self.state = state

    # -- reads and writes --

    def get(self, key: bytes) -> Entry | Missing:
        """Return the entry of the topmost overlay that has one; MISSING: the store has to be asked."""
        for overlay in reversed(self.overlays):
            entry = overlay.get(key, MISSING)
            if entry is not MISSING:
                return entry
        return MISSING

    def ranges(self, start: bytes, end: bytes | None, reverse: bool, work: Work) -> list[Items]:
        """Return the range of every overlay, the topmost first."""
        return [overlay.range(start, end, reverse, work) for overlay in reversed(self.overlays)]

    def put(self, key: bytes, entry: Entry) -> None:
        """Write a draft or a TOMBSTONE."""
        top = self.overlays[-1]
        before = top.size
        top.put(key, entry)
        self.grow(top.size - before)

    def number_draft(self) -> int:
        """Return a number that no other draft of the transaction ever has; 0: it has no id, so no
        request can name its drafts.
        """
        if self.id is None:
            return 0
        self.drafts += 1
        return self.drafts

    def depend_on(self, revision: int) -> None:
        """Note that an answer to it depends on `revision`."""
        self.depends_on = max(self.depends_on, revision)

    # -- levels --

    def begin(self) -> None:
        """Open an inner level."""
        self.move(Event.BEGIN)
        self.overlays.append(Overlay())
        self.grow(LEVEL_OVERHEAD)

    def rollback(self) -> None:
        """Drop the topmost level; its reads stay in the read set."""
        self.move(Event.ROLLBACK_TO if self.depth > 1 else Event.ROLLBACK)
        self._pop()

    def rollback_all(self) -> None:
        """Drop every level."""
        self.move(Event.ROLLBACK)
        self._clear()

    def commit(self) -> Overlay | None:
        """Merge the topmost level into the one below; return the outermost: the store takes it.

        Costs O(k) for k entries in the smaller one of both. Repeated, it changes nothing.
        """
        self.move(Event.RELEASE if self.depth > 1 else Event.COMMIT)
        if not self.overlays:
            return None
        top = self._pop()
        if not self.overlays:
            return top
        below = self.overlays[-1]
        before = below.size
        if len(top) <= len(below):
            below.merge(top)
        else:
            top.merge_below(below)
            self.overlays[-1] = top
        self.grow(self.overlays[-1].size - before)
        return None

    def conflict(self, revision: int) -> None:
        """Note that `revision` has changed a key that it has read, and drop its writes."""
        self.conflicts += self.state is State.OPEN
        self.move(Event.CONFLICT)
        self.depend_on(revision)
        self.grow(-sum(overlay.size for overlay in self.overlays))
        self.overlays = [Overlay() for _ in self.overlays]
        self.lease.release()

    def abandon(self) -> None:
        """Drop the topmost level, whatever its state: the request that has opened it has failed."""
        if self.state is State.OPEN:
            self.rollback()
        elif self.overlays:
            self._pop()

    def expire(self) -> None:
        """Drop every level, because it was idle for too long."""
        self.move(Event.EXPIRE)
        self._clear()

    def _pop(self) -> Overlay:
        top = self.overlays.pop()
        self.grow(-LEVEL_OVERHEAD - top.size)
        return top

    def _clear(self) -> None:
        while self.overlays:
            self._pop()


def refusal(state: State, depends_on: int) -> KvactorError:
    """Return the error that a request for a transaction in `state` gets."""
    if state is not State.CONFLICTED:
        return TransactionNotFound(
            "There is no such transaction: it has ended, was idle for too long, or never was."
        )
    error = TransactionConflict(
        "Something that this transaction has read was changed by someone else. Start it "
        "again from the beginning."
    )
    error.depends_on = depends_on
    return error
