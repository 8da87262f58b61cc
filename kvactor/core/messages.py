"""The messages that the owner takes: one frozen struct each, which names the type of its result.

The rule: a message says all that its outcome depends on, but for the store and the clock. Ids come in
from outside, so the same messages at the same times always have the same outcome (P9). Keys are UTF-8
bytes, times milliseconds since the epoch, durations milliseconds.
"""

from enum import Enum
from typing import Any, Final, Generic, TypeVar

import msgspec

from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.operations import (
    DeleteRange,
    Get,
    Operation,
    PlainOperation,
    Range,
    Result,
)
from kvactor.core.records import NEVER, Revision
from kvactor.core.space import FreeSpace

R = TypeVar("R")


class Scope(Enum):
    """The scope of a request that names no isolated transaction."""

    AUTOCOMMIT = "autocommit"
    SHARED = "shared"


#: Outside of any transaction: a write is a revision of its own.
AUTOCOMMIT: Final = Scope.AUTOCOMMIT
#: The shared transaction if it is open, else as AUTOCOMMIT.
SHARED: Final = Scope.SHARED

#: The transaction of a request: the id of an isolated one, or a scope.
TransactionRef = str | Scope


class Message(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """A request whose result is an `R`."""


class Answer(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """A result, the revision of the store that it depends on, and the owner's time for its message."""

    revision: int
    result: R
    time: int = 0


# -- keys --


class Execute(Message[R], frozen=True):
    """Do one operation that needs no transaction. Raises as the operation."""

    operation: PlainOperation[R]
    transaction: TransactionRef = AUTOCOMMIT


class Presence(Enum):
    """Is the key there?"""

    ABSENT = "absent"
    PRESENT = "present"


#: A key exists or not, or it is at one of these revisions. 0 stands for any draft, a negative number
#: for the draft that has this number without the minus.
Precondition = Presence | tuple[int, ...]


class Check(msgspec.Struct, frozen=True):
    """A condition on a key."""

    key: bytes
    precondition: Precondition


class BatchResponse(msgspec.Struct, frozen=True):
    """The revision that a batch made (0: none, or none yet), and the result of each operation."""

    revision: int
    results: list[Result]


class Batch(Message[BatchResponse], frozen=True):
    """Do operations in order, all or none, in one revision, if all checks hold.

    Under an idempotency key it is done once. Raises `ChecksFailed`, `BatchTooLarge`, `AnswerTooLarge`,
    `IdempotencyKeyReused`, and as the operations.
    """

    operations: tuple[Operation[Any], ...]
    checks: tuple[Check, ...] = ()
    transaction: TransactionRef = AUTOCOMMIT
    idempotency_key: IdempotencyKey | None = None


#: Checks and operations of a batch that is done in one step.
SHORT_BATCH: Final = 16


def is_long(message: Message[Any]) -> bool:
    """May the message take the owner long? It walks a range, or has many operations, or commits."""
    if isinstance(message, Execute):
        return isinstance(message.operation, Range)
    if isinstance(message, Batch):
        return len(message.operations) + len(message.checks) > SHORT_BATCH or any(
            isinstance(one, Range | DeleteRange) for one in message.operations
        )
    return isinstance(message, Commit)


def reads_staged(message: Message[Any]) -> bool:
    """Does the message look at revisions that are not durable, or make one?

    `SHARED` counts: the transaction may be open.
    """
    if isinstance(message, Execute) and message.transaction is AUTOCOMMIT:
        return not isinstance(message.operation, Get | Range)
    return isinstance(message, Execute | Batch | Commit | Sweep)


# -- transactions --


class TransactionState(msgspec.Struct, frozen=True):
    """A transaction after a request. Depth 0: it has ended. `id` is None for the shared one."""

    id: str | None
    depth: int
    expires_at: int = NEVER


class Open(Message[TransactionState], frozen=True):
    """Open an isolated transaction under an unguessable id.

    `idle_timeout` None: the setting's. `retry_of` is the id of the conflicted transaction that it does
    again: after some conflicts in a row it has priority. Raises `InvalidRequest` and
    `TooManyTransactions`.
    """

    id: str
    idle_timeout: int | None = None
    retry_of: str | None = None


class Inspect(Message[TransactionState], frozen=True):
    """Look at a transaction."""

    transaction: TransactionRef


class Begin(Message[TransactionState], frozen=True):
    """Open an inner level; opens the shared transaction when it is not open.

    Raises `TransactionTooDeep`.
    """

    transaction: TransactionRef


class Rollback(Message[TransactionState], frozen=True):
    """Drop what was written since the last begin, and close that level."""

    transaction: TransactionRef


class Commit(Message[TransactionState], frozen=True):
    """Merge what was written since the last begin into the level below, or into the store."""

    transaction: TransactionRef


class Drop(Message[TransactionState], frozen=True):
    """Roll back every level of a transaction."""

    transaction: TransactionRef


# -- the feed --


class Awaited(msgspec.Struct, eq=False):
    """What a reader of the feed waits for: keys with a prefix. `since` is the last revision that it has
    read, or that was passed over while it waited.
    """

    prefix: bytes
    since: int


class Changes(Message[list[Revision]], frozen=True):
    """Read the durable revisions after `since`, in order, at most `limit` of them.

    With `wait`, the answer waits for the next revision if there is none, and passes over those that
    change nothing `awaited`. It is empty when the server stops. Raises `HistoryGone` and
    `RevisionInFuture`.
    """

    since: int
    limit: int
    wait: bool = False
    awaited: Awaited | None = None

    @property
    def after(self) -> int:
        """The revision after which it reads now."""
        return self.since if self.awaited is None else self.awaited.since


# -- status --


class StatusReport(msgspec.Struct, frozen=True):
    """The owner's state. `keys` counts expired keys until they are swept, and hidden ones.

    Sizes are bytes, `shared_age` milliseconds.
    """

    keys: int
    staged: int
    held: int
    transactions: int
    shared_depth: int
    shared_age: int
    memtable_keys: int
    memtable_bytes: int
    folded: int
    free_space: int
    stalled: bool


class Status(Message[StatusReport], frozen=True):
    """Report the owner's state."""


# -- the owner's own messages; they have no answer --


class Flushed(Message[None], frozen=True):
    """The journal has made everything up to `revision` durable, unless there was an `error`.

    `free_space` was read then, if little was left.
    """

    revision: int
    error: BaseException | None = None
    free_space: FreeSpace | None = None


class Folded(Message[None], frozen=True):
    """The tree has finished a fold, unless there was an `error`. `free_space` was read then."""

    error: BaseException | None = None
    free_space: FreeSpace | None = None


class HistoryRead(Message[None], frozen=True):
    """The journal has read `revisions` newer than `since`, unless there was an `error`."""

    since: int
    revisions: list[Revision]
    error: BaseException | None = None


class Forgot(Message[None], frozen=True):
    """The journal has forgotten some history; is there `more` to forget? There may be an `error`."""

    more: bool
    error: BaseException | None = None
    free_space: FreeSpace | None = None


class Continue(Message[None], frozen=True):
    """More messages have come than one drain takes: go on with them."""


class Sweep(Message[None], frozen=True):
    """A sweep has left expired keys: go on with it."""


class Tick(Message[None], frozen=True):
    """Time has passed: sweep expired keys and idle transactions.

    `free_space` was read just now; None if it could not be read.
    """

    free_space: FreeSpace | None


class Stop(Message[None], frozen=True):
    """Finish what is staged, fold, and end."""
