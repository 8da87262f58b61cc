"""The operations on keys: the type of each, and its effect.

The rule: an operation knows keys and nothing else. Transactions, checks and idempotency keys belong
to the request that carries it (`messages`), JSON to `api.operations`. Keys are UTF-8 bytes, durations
milliseconds.
"""

from typing import ClassVar, Generic, TypeVar

import msgspec

from kvactor.core import records
from kvactor.core.context import Context, Page
from kvactor.core.keyspace import Keyspace
from kvactor.core.records import MISSING, NEVER, TOMBSTONE
from kvactor.core.transaction import Transaction
from kvactor.core.work import LOOKUP, RANGE, STEP_SIZE, UNLIMITED, WRITE, Steps
from kvactor.errors import InvalidRequest, KeyNotFound, NotAnInteger, RangeTooLarge

R = TypeVar("R")

#: Bounds of an increment's result: a signed integer of 64 bits, as in Redis.
INTEGERS = range(-(1 << 63), 1 << 63)

_JSON = "application/json"
_integer = msgspec.json.Decoder(int)


class Operation(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """An operation whose result is an `R`. It runs within a transaction: it may write in steps."""

    #: units of work that it walks at least
    least_work: ClassVar[int] = LOOKUP

    def run(self, keys: Keyspace, context: Context, transaction: Transaction) -> R | Steps[R]:
        """Do it, at once or in steps."""
        raise NotImplementedError


class PlainOperation(Operation[R], frozen=True):
    """An operation that reads or writes once, and so needs no transaction.

    Without a transaction, `read` returns the durable record, which staged writes may replace. So an
    operation that writes what it has read is an `Operation`, not a `PlainOperation`.
    """

    def run(self, keys: Keyspace, context: Context, transaction: Transaction | None) -> R:
        """Do it."""
        raise NotImplementedError


class Get(PlainOperation[bytes | None], frozen=True):
    """Read a key's record; None: it is missing."""

    key: bytes

    def run(self, keys: Keyspace, context: Context, transaction: Transaction | None) -> bytes | None:
        """Raises `InvalidKey`, `RecordDamaged` and `TransactionTooLarge`."""
        keys.check_key(self.key)
        record = keys.read(context, transaction, self.key)
        return None if record is MISSING else record


class Set(PlainOperation[bool], frozen=True):
    """Give a key a value, whether it had one or not.

    After `ttl` the key expires. The result is whether the key is new. Within a transaction it is
    looked up only if `report_created`: a transaction that only writes reads nothing.
    """

    least_work: ClassVar[int] = WRITE

    key: bytes
    value: bytes
    content_type: str
    ttl: int | None = None
    report_created: bool = False

    def run(self, keys: Keyspace, context: Context, transaction: Transaction | None) -> bool:
        """Raises `InvalidKey`, `ValueTooLarge`, and as every write."""
        keys.check_key(self.key)
        keys.check_value(self.value)
        created = (
            self.report_created
            and transaction is not None
            and not keys.exists(context, transaction, self.key)
        )
        expires_at = NEVER if self.ttl is None else context.now + self.ttl
        number = transaction.number_draft() if transaction is not None else 0
        draft = records.draft(self.value, self.content_type, expires_at, number)
        return keys.write(context, transaction, self.key, draft) or created


class Delete(PlainOperation[bool], frozen=True):
    """Remove a key. The result is whether it was there."""

    key: bytes
    must_exist: bool = False

    def run(self, keys: Keyspace, context: Context, transaction: Transaction | None) -> bool:
        """Raises `InvalidKey`, `KeyNotFound` if it `must_exist` and does not, and as every write."""
        keys.check_key(self.key)
        if keys.exists(context, transaction, self.key):
            keys.write(context, transaction, self.key, TOMBSTONE)
            return True
        if self.must_exist:
            raise KeyNotFound("Key not found")
        return False


class Increment(Operation[int], frozen=True):
    """Add to a key's integer; a missing one is 0. The result is the sum. The expiry stays."""

    least_work: ClassVar[int] = LOOKUP + WRITE

    key: bytes
    by: int

    def run(self, keys: Keyspace, context: Context, transaction: Transaction) -> int:
        """Raises `InvalidKey`, `NotAnInteger`, `RecordDamaged`, and as every write."""
        keys.check_key(self.key)
        record = keys.read(context, transaction, self.key)
        value, expires_at = 0, NEVER
        if record is not MISSING:
            expires_at = records.expiry_of(record)
            try:
                value = _integer.decode(records.value_of(record))
            except msgspec.DecodeError:
                raise NotAnInteger("The key's value is no integer.") from None
        value += self.by
        if value not in INTEGERS:
            raise NotAnInteger("The sum is beyond what 64 bits hold.")
        draft = records.draft(b"%d" % value, _JSON, expires_at, transaction.number_draft())
        keys.write(context, transaction, self.key, draft)
        return value


class Range(PlainOperation[Page], frozen=True):
    """Read the keys from `start` up to but not including `end` (None: to the last), at most `limit`.

    With `values` false, their records end before the value.
    """

    least_work: ClassVar[int] = RANGE

    start: bytes = b""
    end: bytes | None = None
    limit: int = 100
    reverse: bool = False
    values: bool = True

    def run(self, keys: Keyspace, context: Context, transaction: Transaction | None) -> Page:
        """Raises `InvalidRequest`, `RecordDamaged` and `TransactionTooLarge`."""
        if not 1 <= self.limit <= keys.settings.max_scan_limit:
            raise InvalidRequest(f"A limit is from 1 to {keys.settings.max_scan_limit}.")
        return keys.scan(
            context,
            transaction,
            self.start,
            self.end,
            self.limit,
            room=context.max_result_size,
            work=context.max_walk,
            reverse=self.reverse,
            values=self.values,
        )


class DeleteRange(Operation[int], frozen=True):
    """Remove the keys from `start` up to but not including `end` (None: to the last).

    The result is how many there were.
    """

    least_work: ClassVar[int] = RANGE

    start: bytes
    end: bytes | None

    def run(self, keys: Keyspace, context: Context, transaction: Transaction) -> Steps[int]:
        """Raises `RangeTooLarge` beyond `max_batch_size` keys, `RecordDamaged`, and as every write."""
        start, deleted, limit = self.start, 0, keys.settings.max_batch_size
        more = True
        while more:
            page = keys.scan(
                context,
                transaction,
                start,
                self.end,
                min(DELETED_PER_STEP, limit - deleted + 1),
                room=UNLIMITED,
                work=STEP_SIZE,
                values=False,
            )
            deleted += len(page.items)
            more = page.more
            if deleted > limit:
                raise RangeTooLarge(
                    f"The range has more keys than the {limit} that one revision may delete. Delete "
                    "parts of it.",
                    details={"limit": limit},
                )
            for key, _ in page.items:
                keys.write(context, transaction, key, TOMBSTONE)
            if page.last is not None:
                start = page.last + b"\0"
                if context.spent >= context.step_end:
                    yield
        return deleted


#: Keys of a range that are deleted in one step, at most.
DELETED_PER_STEP = 500

#: Of Get a record or None, of Set whether the key is new, of Delete whether it was there, of Increment
#: the sum, of Range a page, of DeleteRange how many there were.
Result = bytes | bool | int | Page | None
