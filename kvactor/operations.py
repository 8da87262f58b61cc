"""What each operation on keys does, outside of transactions and within them. Pure and synchronous.

The rule: whatever is more than one plain read or write runs in a unit, a level of its own on the
transaction that it speaks in, or on a new one that nobody else sees. A unit ends whole: merged into
the level below, staged as one revision, or forgotten.

What an operation rests on (P3) it notes in `rests_on`; the owner holds its answer until that is
durable.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import msgspec

from kvactor import records
from kvactor.errors import (
    AnswerTooLarge,
    BatchTooLarge,
    ChecksFailed,
    IdempotencyKeyReused,
    InvalidKey,
    InvalidRequest,
    KeyNotFound,
    KvactorError,
    NotAnInteger,
    PreconditionFailed,
    RangeTooLarge,
    RecordDamaged,
    StorageFull,
    TransactionTooLarge,
    ValueTooLarge,
)
from kvactor.messages import (
    Batch,
    BatchResult,
    Delete,
    DeleteRange,
    Expected,
    Get,
    Increment,
    Once,
    Page,
    Presence,
    Range,
    Result,
    Set,
    Within,
    Written,
)
from kvactor.records import HIDDEN, MISSING, NEVER, TOMBSTONE, Entry, Missing
from kvactor.sessions import Sessions
from kvactor.settings import Settings
from kvactor.store import Store, alive
from kvactor.transactions import Transaction, merge_ranges

R = TypeVar("R")
M = TypeVar("M", Set, Delete, DeleteRange, Batch)

#: Bytes that one Range reads, lest the owner is held up: who wants more asks again.
PART = 256 * 1024

#: What an increment may leave behind: what a signed integer of 64 bits can hold, as in Redis.
INTEGERS = range(-(1 << 63), 1 << 63)

_JSON = "application/json"
_keep = msgspec.msgpack.Encoder().encode


class Operations:
    """Operations on the keys of a store, in the transactions of some sessions.

    `now` (milliseconds since the epoch) and `free_space` (bytes) are what the owner has read last.
    """

    def __init__(self, store: Store, sessions: Sessions, settings: Settings, free_space: int) -> None:
        self._store = store
        self._sessions = sessions
        self._settings = settings
        self._integer = msgspec.json.Decoder(int)
        self.now = 0
        self.free_space = free_space
        self.rests_on = 0
        #: what a message does in a unit
        self._in_unit: dict[type, Callable[[Transaction, Any], Any]] = {
            Get: self._get,
            Set: self._set,
            Delete: self._delete,
            Increment: self._increment,
            Range: self._range,
            DeleteRange: self._delete_range,
        }

    # -- messages --

    def get(self, message: Get) -> bytes:
        """See `Get`."""
        self._check_key(message.key)
        transaction = self._sessions.use(message.within, self.now)
        if transaction is None:
            record = self._store.durable.get(message.key, self.now)
        else:
            record = self._read(transaction, message.key)
        if record is MISSING:
            raise KeyNotFound("Key not found")
        return record

    def set(self, message: Set) -> Written:
        """See `Set`."""
        if message.expected is not None or message.once is not None:
            return Written(*self._once(message, bool, self._set_if))
        transaction = self._sessions.use(message.within, self.now)
        if transaction is not None:
            # Whether the key is new is not looked up: who only writes has read nothing.
            self._set(transaction, message)
            return Written(0, False)
        draft = self._draft(message)
        self.check_space()
        ((_, record),) = self.stage([(message.key, draft)])
        revision = self._store.head
        return Written(revision, record is not None and records.created_of(record) == revision)

    def delete(self, message: Delete) -> Written:
        """See `Delete`."""
        if message.expected is not None or message.once is not None:
            return Written(*self._once(message, bool, self._delete_if))
        transaction = self._sessions.use(message.within, self.now)
        if transaction is not None:
            if not self._delete(transaction, message):
                raise KeyNotFound("Key not found")
            return Written(0, False)
        key = message.key
        self._check_key(key)
        self.rests_on = self._store.rests_on(key)
        record = self._store.standing(key)
        if record is MISSING or records.expiry_of(record) <= self.now:
            raise KeyNotFound("Key not found")
        self.check_space()
        self.stage([(key, TOMBSTONE)])
        return Written(self._store.head, False)

    def range(self, message: Range) -> Page:
        """See `Range`."""
        transaction = self._sessions.use(message.within, self.now)
        return self._range(transaction, message, min(PART, self._settings.max_body_size))

    def delete_range(self, message: DeleteRange) -> BatchResult:
        """See `DeleteRange`."""
        revision, deleted = self._once(message, int, self._delete_range)
        return BatchResult(revision, [deleted])

    def batch(self, message: Batch) -> BatchResult:
        """See `Batch`."""
        if len(message.checks) + len(message.operations) > self._settings.max_batch_size:
            raise BatchTooLarge(
                f"A batch has at most {self._settings.max_batch_size} checks and operations."
            )
        return BatchResult(*self._once(message, list[Result], self._batch))

    def stage(self, changes: Collection[tuple[bytes, Entry]]) -> list[tuple[bytes, bytes | None]]:
        """Stage changes as one revision, doom who has read what they touch, and return what they
        have really changed.
        """
        changed = self._store.stage(changes, self.now)
        if changed:
            self._sessions.wrote((key for key, _ in changed), self._store.head)
            self.rests_on = self._store.head
        else:
            # That there was nothing left to delete may not be durable yet.
            self.rests_on = max(self.rests_on, *(self._store.rests_on(key) for key, _ in changes), 0)
        return changed

    # -- units --

    @contextmanager
    def _unit(self, within: Within) -> Iterator[Transaction]:
        """Yield a transaction with a level of its own on top, and see to how that ends."""
        transaction = self._sessions.use(within, self.now)
        if transaction is None:
            transaction = Transaction(None, self.now, NEVER)
        else:
            transaction.begin()
        try:
            yield transaction
        except BaseException:
            transaction.rollback()
            raise
        changes = transaction.commit()
        if changes:
            self.stage(changes.items())

    def _once(self, message: M, kind: type[R], do: Callable[[Transaction, M], R]) -> tuple[int, R]:
        """Do something in a unit, and return the revision that it made (0: none, or none yet) and its
        result. If it was done before under the same idempotency key, return what came of it then.
        """
        head, once = self._store.head, message.once
        with self._unit(message.within) as unit:
            if once is None:
                result = do(unit, message)
            else:
                key = HIDDEN + once.key
                kept = self._read(unit, key)
                if kept is not MISSING:
                    return records.revision_of(kept), self._repeat(once, kept, kind)
                result = do(unit, message)
                window = int(self._settings.idempotency_window * 1000)
                kept = records.draft(once.fingerprint + _keep(result), "", self.now + window)
                self._write(unit, key, kept)
        return self._store.head if self._store.head > head else 0, result

    def _repeat(self, once: Once, kept: bytes, kind: type[R]) -> R:
        value, size = records.value_of(kept), len(once.fingerprint)
        if value[:size] != once.fingerprint:
            raise IdempotencyKeyReused(
                "The Idempotency-Key was used for another request. Choose a new one for each."
            )
        return msgspec.msgpack.decode(value[size:], type=kind)

    def _set_if(self, unit: Transaction, message: Set) -> bool:
        self._expect(unit, message)
        if message.expected is not None:
            created = self._read(unit, message.key) is MISSING
        elif unit.depth > 1:
            # As without an idempotency key: who only writes has read nothing.
            created = False
        else:
            # A damaged one can be replaced.
            before = self._store.standing(message.key)
            created = before is MISSING or records.expiry_of(before) <= self.now
        self._set(unit, message)
        return created

    def _delete_if(self, unit: Transaction, message: Delete) -> bool:
        self._expect(unit, message)
        if not self._delete(unit, message):
            raise KeyNotFound("Key not found")
        return False

    def _expect(self, unit: Transaction, message: Set | Delete) -> None:
        if message.expected is not None and not self._holds(unit, message.key, message.expected):
            raise PreconditionFailed(
                "The key is not what the precondition says. Read it again, and decide anew."
            )

    def _batch(self, unit: Transaction, message: Batch) -> list[Result]:
        failed = [
            index
            for index, check in enumerate(message.checks)
            if not self._holds(unit, check.key, check.expected)
        ]
        if failed:
            raise ChecksFailed(
                "Not all of the batch's checks hold, so nothing was done.", details={"failed": failed}
            )
        results: list[Result] = []
        room = self._settings.max_body_size
        for index, operation in enumerate(message.operations):
            try:
                result = self._in_unit[type(operation)](unit, operation)
                if result is not None:
                    room -= _size(result)
                if room < 0:
                    raise AnswerTooLarge(
                        f"The batch's results have more than {self._settings.max_body_size} bytes. "
                        "Read less at once."
                    )
            except KvactorError as error:
                error.details = {**error.details, "operation": index}
                raise
            results.append(result)
        return results

    # -- reading --

    def _get(self, unit: Transaction, message: Get) -> bytes | None:
        self._check_key(message.key)
        record = self._read(unit, message.key)
        return None if record is MISSING else record

    def _read(self, transaction: Transaction, key: bytes) -> bytes | Missing:
        entry = transaction.get(key)
        if entry is TOMBSTONE:
            return MISSING
        if entry is not MISSING:
            return MISSING if records.expiry_of(entry) <= self.now else entry
        self._depend(transaction, self._store.rests_on(key))
        if transaction.id is None:
            return self._store.staged.get(key, self.now)
        self._check_size(transaction, len(key))
        # Before it is looked up: that it is damaged is seen, too.
        self._sessions.readers.saw_key(transaction, key)
        record = self._store.staged.get(key, self.now)
        if record is not MISSING:
            transaction.reads.saw_record(record)
        return record

    def _holds(self, unit: Transaction, key: bytes, expected: Expected) -> bool:
        self._check_key(key)
        record = self._read(unit, key)
        if isinstance(expected, Presence):
            return (record is MISSING) is (expected is Presence.ABSENT)
        return record is not MISSING and records.revision_of(record) in expected

    def _range(self, transaction: Transaction | None, message: Range, room: int | None = None) -> Page:
        if not 1 <= message.limit <= self._settings.max_scan_limit:
            raise InvalidRequest(f"A limit is from 1 to {self._settings.max_scan_limit}.")
        room = self._settings.max_body_size if room is None else room
        start, end, limit = message.start, message.end, message.limit
        return self._scan(
            transaction, start, end, limit, room, reverse=message.reverse, values=message.values
        )

    def _scan(
        self,
        transaction: Transaction | None,
        start: bytes,
        end: bytes | None,
        limit: int,
        room: int,
        *,
        reverse: bool = False,
        values: bool = True,
    ) -> Page:
        # What is hidden comes behind all keys.
        end = HIDDEN if end is None else min(end, HIDDEN)
        if transaction is None:
            sources = self._store.durable.ranges(start, end, reverse)
        else:
            sources = transaction.ranges(start, end, reverse) + self._store.staged.ranges(
                start, end, reverse
            )
        found = alive(merge_ranges(sources, reverse), self.now)
        items: list[tuple[bytes, bytes]] = []
        if not values:
            found = ((key, records.without_value(record)) for key, record in found)
        for item in islice(found, limit):
            room -= len(item[0]) + len(item[1])
            if room < 0 and items:
                more = True
                break
            items.append(item)
        else:
            more = next(found, None) is not None
        if more:
            # Nothing is said of what lies beyond the last item, and so nothing was read there.
            last = items[-1][0]
            start, end = (last, end) if reverse else (start, last + b"\0")
        if transaction is not None:
            self._depend(transaction, self._store.rests_on_range(start, end))
            if transaction.id is not None:
                self._check_size(transaction, len(start) + len(end))
                self._sessions.readers.saw_range(transaction, start, end)
                for key, record in items:
                    if transaction.get(key) is MISSING:
                        transaction.reads.saw_record(record)
        return Page(items, more)

    def _depend(self, transaction: Transaction, revision: int) -> None:
        self.rests_on = max(self.rests_on, revision)
        transaction.rests_on = max(transaction.rests_on, revision)

    # -- writing --

    def _set(self, transaction: Transaction, message: Set) -> None:
        self._write(transaction, message.key, self._draft(message))

    def _draft(self, message: Set) -> bytes:
        self._check_key(message.key)
        if len(message.value) > self._settings.max_value_size:
            raise ValueTooLarge(f"A value has at most {self._settings.max_value_size} bytes.")
        expires_at = NEVER if message.ttl is None else self.now + message.ttl
        return records.draft(message.value, message.content_type, expires_at)

    def _delete(self, unit: Transaction, message: Delete) -> bool:
        self._check_key(message.key)
        try:
            there = self._read(unit, message.key) is not MISSING
        except RecordDamaged:
            there = True
        if there:
            self._write(unit, message.key, TOMBSTONE)
        return there

    def _increment(self, unit: Transaction, message: Increment) -> int:
        self._check_key(message.key)
        record = self._read(unit, message.key)
        value, expires_at = 0, NEVER
        if record is not MISSING:
            expires_at = records.expiry_of(record)
            try:
                value = self._integer.decode(records.value_of(record))
            except msgspec.DecodeError:
                raise NotAnInteger("The key's value is no integer.") from None
        value += message.by
        if value not in INTEGERS:
            raise NotAnInteger("The sum is beyond what 64 bits hold.")
        draft = records.draft(b"%d" % value, _JSON, expires_at)
        self._write(unit, message.key, draft)
        return value

    def _delete_range(self, unit: Transaction, message: DeleteRange) -> int:
        limit = self._settings.max_batch_size
        # As many keys as there may be; of their records, the headers will do.
        page = self._scan(unit, message.start, message.end, limit, sys.maxsize, values=False)
        if page.more:
            raise RangeTooLarge(
                f"The range has more keys than the {limit} that one revision may delete. Delete "
                "parts of it.",
                details={"limit": limit},
            )
        for key, _ in page.items:
            self._write(unit, key, TOMBSTONE)
        return len(page.items)

    def _write(self, transaction: Transaction, key: bytes, entry: Entry) -> None:
        self.check_space()
        self._check_size(transaction, len(key) + (0 if entry is TOMBSTONE else len(entry)))
        transaction.put(key, entry)

    # -- limits --

    def _check_key(self, key: bytes) -> None:
        if not 0 < len(key) <= self._settings.max_key_size:
            raise InvalidKey(
                f"A key has 1 to {self._settings.max_key_size} bytes in UTF-8, not {len(key)}."
            )

    def check_space(self) -> None:
        """Raise `StorageFull` if too little space is left to write."""
        if self.free_space < self._settings.min_free_space:
            raise StorageFull(
                f"Only {self.free_space} bytes are free where the data is, under the floor of "
                f"{self._settings.min_free_space}. Writes are refused until there is more; reads go on."
            )

    def _check_size(self, transaction: Transaction, more: int) -> None:
        if transaction.size + more > self._settings.max_transaction_size:
            raise TransactionTooLarge(
                f"A transaction holds at most {self._settings.max_transaction_size} bytes of "
                "writes and reads."
            )


def _size(result: Any) -> int:
    """Return the bytes of an operation's result, about."""
    if isinstance(result, Page):
        return sum(len(key) + len(record) for key, record in result.items)
    return len(result) if isinstance(result, bytes) else 0
