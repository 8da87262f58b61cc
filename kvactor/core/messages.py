"""What the owner can be told: one frozen struct per request, each naming the type of its result.

`within` says in which transaction a request speaks: OUTSIDE of any, in the SHARED one if it is
open, or in the isolated one of that id. Keys are UTF-8 bytes, times milliseconds since the epoch,
durations milliseconds. Ids and the clock come in from outside, so that the same messages always
have the same outcome (promise P9).
"""

from enum import Enum
from typing import Final, Generic, TypeVar

import msgspec

from kvactor.core.records import NEVER, Revision

R = TypeVar("R")


class Scope(Enum):
    """The two places to speak from that have no id."""

    AUTOCOMMIT = "outside"
    SHARED = "shared"


AUTOCOMMIT: Final = Scope.AUTOCOMMIT
SHARED: Final = Scope.SHARED

Within = str | Scope


class Message(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """A request whose result is an `R`."""


class Answer(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """A result, and the revision of the store on which it rests."""

    revision: int
    result: R


# -- results --


class TransactionState(msgspec.Struct, frozen=True):
    """A transaction after the request. Depth 0: it is over. `id` is None for the shared one."""

    id: str | None
    depth: int
    expires_at: int = NEVER


class Page(msgspec.Struct, frozen=True):
    """Part of the keys in a range, in order, with their records; `more` says that the limit cut it
    short.
    """

    items: list[tuple[bytes, bytes]]
    more: bool


class StatusReport(msgspec.Struct, frozen=True):
    """What the owner says of itself. `keys` counts expired keys until they are swept, and what is
    kept for idempotency keys.
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


class Written(msgspec.Struct, frozen=True):
    """What a write of one key has done: the revision that it made, and whether the key is new.

    Within a transaction there is no revision yet (0), and nobody looked whether it is new.
    """

    revision: int
    created: bool


#: Of an operation in a batch: of Get a record or None, of Delete whether it was there, of Increment
#: the sum, of DeleteRange how many there were, of Range a Page, of Set None.
Result = bytes | bool | int | Page | None


class BatchResponse(msgspec.Struct, frozen=True):
    """What a batch has done: the revision that it made (0: none, or none yet), and its results."""

    revision: int
    results: list[Result]


# -- conditions --


class Presence(Enum):
    """Is the key there?"""

    ABSENT = "absent"
    PRESENT = "present"


#: What a key is expected to be: there or not, or at one of these revisions (a draft's is 0).
Precondition = Presence | tuple[int, ...]


class Check(msgspec.Struct, frozen=True):
    """A condition on a key."""

    key: bytes
    expected: Precondition


class IdempotencyKey(msgspec.Struct, frozen=True):
    """A write's idempotency key, hashed, and a hash of all that makes the request what it is."""

    key: bytes
    fingerprint: bytes


# -- keys --


class Get(Message[bytes], frozen=True):
    """Read a key's record. Raises `KeyNotFound`."""

    key: bytes
    within: Within = AUTOCOMMIT


class Set(Message[Written], frozen=True):
    """Give a key a value, whether it had one or not.

    `ttl`, in milliseconds from now, ends it by itself. Raises `PreconditionFailed`.
    """

    key: bytes
    value: bytes
    content_type: str
    within: Within = AUTOCOMMIT
    ttl: int | None = None
    expected: Precondition | None = None
    once: IdempotencyKey | None = None


class Delete(Message[Written], frozen=True):
    """Remove a key. Raises `KeyNotFound`, `PreconditionFailed`."""

    key: bytes
    within: Within = AUTOCOMMIT
    expected: Precondition | None = None
    once: IdempotencyKey | None = None


class Increment(msgspec.Struct, frozen=True):
    """In a batch: add to a key's integer, which is 0 if it is missing. Raises `NotAnInteger`."""

    key: bytes
    by: int


class Range(Message[Page], frozen=True):
    """Read the keys from `start` up to but not including `end` (None: to the last), at most `limit`
    of them; with `values` false, their records end before the value.
    """

    start: bytes = b""
    end: bytes | None = None
    limit: int = 100
    reverse: bool = False
    within: Within = AUTOCOMMIT
    values: bool = True


class DeleteRange(Message[BatchResponse], frozen=True):
    """Remove all keys from `start` up to but not including `end`, in one revision.

    Raises `RangeTooLarge`.
    """

    start: bytes
    end: bytes | None
    within: Within = AUTOCOMMIT
    once: IdempotencyKey | None = None


Operation = Get | Set | Delete | Increment | Range | DeleteRange


class Batch(Message[BatchResponse], frozen=True):
    """Do operations in order, all or none, in one revision, if all checks hold.

    What the operations say of transactions, conditions and idempotency keys is not looked at. Raises
    `ChecksFailed`, `BatchTooLarge`, and what the operations raise.
    """

    checks: tuple[Check, ...]
    operations: tuple[Operation, ...]
    within: Within = AUTOCOMMIT
    once: IdempotencyKey | None = None


# -- the feed --


class Changes(Message[list[Revision]], frozen=True):
    """Read the durable revisions after `since`, in order, at most `limit` of them.

    If there are none, the answer waits for the next one; it is empty when the server stops. Raises
    `HistoryGone`, `RevisionInFuture`.
    """

    since: int
    limit: int
    wait: bool = False


# -- transactions --


class Open(Message[TransactionState], frozen=True):
    """Open an isolated transaction under an id that nobody can guess.

    `idle_timeout` None: the setting's.
    """

    id: str
    idle_timeout: int | None = None


class Inspect(Message[TransactionState], frozen=True):
    """Look at a transaction."""

    within: Within


class Begin(Message[TransactionState], frozen=True):
    """Go one level deeper; opens the shared transaction when it is not open."""

    within: Within


class Rollback(Message[TransactionState], frozen=True):
    """Forget what was written since the last begin, and go one level up."""

    within: Within


class Commit(Message[TransactionState], frozen=True):
    """Merge what was written since the last begin into the level above; at the bottom, into the
    store.
    """

    within: Within


class Drop(Message[TransactionState], frozen=True):
    """Roll a transaction back whole, at any depth."""

    within: Within


# -- about the server --


class Status(Message[StatusReport], frozen=True):
    """Ask the owner how it is."""


# -- what the owner learns by itself; nobody waits for an answer to these --


class Flushed(Message[None], frozen=True):
    """The journal has finished an append: it is durable up to `revision`, unless there was an
    `error`.
    """

    revision: int
    error: BaseException | None = None


class Folded(Message[None], frozen=True):
    """The tree has finished a fold, unless there was an `error`."""

    error: BaseException | None = None


class Tick(Message[None], frozen=True):
    """Time has passed: sweep expired keys and idle transactions.

    `free_space`, in bytes, was read just now; None if it could not be read.
    """

    free_space: int | None


class Stop(Message[None], frozen=True):
    """Finish what is staged, fold, and end."""
