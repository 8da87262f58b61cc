"""What each operation on keys does, outside of transactions and within them. Pure and synchronous.

The rule: whatever is more than a plain get, set, delete or scan runs in a unit.
"""

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from kvactor.core import records
from kvactor.core.access import Access
from kvactor.core.messages import (
    Batch,
    BatchResponse,
    Delete,
    DeleteRange,
    Get,
    Increment,
    Page,
    Precondition,
    Presence,
    Range,
    Result,
    Set,
    Written,
)
from kvactor.core.records import MISSING, NEVER, TOMBSTONE
from kvactor.core.store import Store
from kvactor.core.transactions import Transaction
from kvactor.core.units import Units
from kvactor.errors import (
    AnswerTooLarge,
    BatchTooLarge,
    ChecksFailed,
    InvalidRequest,
    KeyNotFound,
    KvactorError,
    NotAnInteger,
    PreconditionFailed,
    RangeTooLarge,
    RecordDamaged,
    ValueTooLarge,
)
from kvactor.settings import Settings

#: Bytes that one Range reads, lest the owner is held up: who wants more asks again.
PART = 256 * 1024

#: What an increment may leave behind: what a signed integer of 64 bits can hold, as in Redis.
INTEGERS = range(-(1 << 63), 1 << 63)

_JSON = "application/json"


class Operations:
    """Operations on the keys of a store, through `access`."""

    def __init__(self, access: Access, store: Store, settings: Settings) -> None:
        self._access = access
        self._store = store
        self._settings = settings
        self._units = Units(access, store, settings)
        self._integer = msgspec.json.Decoder(int)
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
        self._access.check_key(message.key)
        record = self._access.read(self._access.transaction(message.within), message.key)
        if record is MISSING:
            raise KeyNotFound("Key not found")
        return record

    def set(self, message: Set) -> Written:
        """See `Set`."""
        if message.expected is not None or message.once is not None:
            return Written(*self._units.run(message, bool, self._set_if))
        transaction = self._access.transaction(message.within)
        if transaction is not None:
            # Whether the key is new is not looked up: who only writes has read nothing.
            self._set(transaction, message)
            return Written(0, False)
        draft = self._draft(message)
        self._access.check_space()
        ((_, record),) = self._access.stage([(message.key, draft)])
        revision = self._store.head
        return Written(revision, record is not None and records.created_of(record) == revision)

    def delete(self, message: Delete) -> Written:
        """See `Delete`."""
        if message.expected is not None or message.once is not None:
            return Written(*self._units.run(message, bool, self._delete_if))
        transaction = self._access.transaction(message.within)
        if transaction is not None:
            if not self._delete(transaction, message):
                raise KeyNotFound("Key not found")
            return Written(0, False)
        key = message.key
        self._access.check_key(key)
        if not self._access.exists(key):
            raise KeyNotFound("Key not found")
        self._access.check_space()
        self._access.stage([(key, TOMBSTONE)])
        return Written(self._store.head, False)

    def range(self, message: Range) -> Page:
        """See `Range`."""
        transaction = self._access.transaction(message.within)
        return self._range(transaction, message, min(PART, self._settings.max_body_size))

    def delete_range(self, message: DeleteRange) -> BatchResponse:
        """See `DeleteRange`."""
        revision, deleted = self._units.run(message, int, self._delete_range)
        return BatchResponse(revision, [deleted])

    def batch(self, message: Batch) -> BatchResponse:
        """See `Batch`."""
        if len(message.checks) + len(message.operations) > self._settings.max_batch_size:
            raise BatchTooLarge(
                f"A batch has at most {self._settings.max_batch_size} checks and operations."
            )
        return BatchResponse(*self._units.run(message, list[Result], self._batch))

    # -- in a transaction, or a unit of it --

    def _set_if(self, unit: Transaction, message: Set) -> bool:
        self._expect(unit, message)
        if message.expected is not None:
            created = self._access.read(unit, message.key) is MISSING
        elif unit.depth > 1:
            # As without an idempotency key: who only writes has read nothing.
            created = False
        else:
            # A damaged one can be replaced.
            created = not self._access.exists(message.key)
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

    def _get(self, unit: Transaction, message: Get) -> bytes | None:
        self._access.check_key(message.key)
        record = self._access.read(unit, message.key)
        return None if record is MISSING else record

    def _holds(self, unit: Transaction, key: bytes, expected: Precondition) -> bool:
        self._access.check_key(key)
        record = self._access.read(unit, key)
        if isinstance(expected, Presence):
            return (record is MISSING) is (expected is Presence.ABSENT)
        return record is not MISSING and records.revision_of(record) in expected

    def _range(self, transaction: Transaction | None, message: Range, room: int | None = None) -> Page:
        if not 1 <= message.limit <= self._settings.max_scan_limit:
            raise InvalidRequest(f"A limit is from 1 to {self._settings.max_scan_limit}.")
        room = self._settings.max_body_size if room is None else room
        start, end, limit = message.start, message.end, message.limit
        return self._access.scan(
            transaction, start, end, limit, room, reverse=message.reverse, values=message.values
        )

    def _set(self, transaction: Transaction, message: Set) -> None:
        self._access.write(transaction, message.key, self._draft(message))

    def _draft(self, message: Set) -> bytes:
        self._access.check_key(message.key)
        if len(message.value) > self._settings.max_value_size:
            raise ValueTooLarge(f"A value has at most {self._settings.max_value_size} bytes.")
        expires_at = NEVER if message.ttl is None else self._access.now + message.ttl
        return records.draft(message.value, message.content_type, expires_at)

    def _delete(self, unit: Transaction, message: Delete) -> bool:
        self._access.check_key(message.key)
        try:
            there = self._access.read(unit, message.key) is not MISSING
        except RecordDamaged:
            there = True
        if there:
            self._access.write(unit, message.key, TOMBSTONE)
        return there

    def _increment(self, unit: Transaction, message: Increment) -> int:
        self._access.check_key(message.key)
        record = self._access.read(unit, message.key)
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
        self._access.write(unit, message.key, draft)
        return value

    def _delete_range(self, unit: Transaction, message: DeleteRange) -> int:
        limit = self._settings.max_batch_size
        # As many keys as there may be; of their records, the headers will do.
        page = self._access.scan(unit, message.start, message.end, limit, sys.maxsize, values=False)
        if page.more:
            raise RangeTooLarge(
                f"The range has more keys than the {limit} that one revision may delete. Delete "
                "parts of it.",
                details={"limit": limit},
            )
        for key, _ in page.items:
            self._access.write(unit, key, TOMBSTONE)
        return len(page.items)


def _size(result: Any) -> int:
    """Return the bytes of an operation's result, about."""
    if isinstance(result, Page):
        return sum(len(key) + len(record) for key, record in result.items)
    return len(result) if isinstance(result, bytes) else 0
