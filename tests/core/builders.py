"""Messages, and owners in a certain state, that the tests of the core need often."""

from collections.abc import Sequence
from typing import Any

from kvactor.core.context import Page
from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.messages import (
    AUTOCOMMIT,
    Batch,
    BatchResponse,
    Check,
    Execute,
    Message,
    Precondition,
    Presence,
    Tick,
    TransactionRef,
)
from kvactor.core.operations import (
    Delete,
    DeleteRange,
    Get,
    Increment,
    Operation,
    Range,
    Result,
    Set,
)
from kvactor.core.records import Record, decode, value_of
from kvactor.core.space import FreeSpace
from kvactor.settings import Settings
from tests.core.harness import HeldJournal, OwnerHarness, RecordingReply

ABSENT, PRESENT = Presence.ABSENT, Presence.PRESENT
TICK = Tick(FreeSpace(1 << 40))
DAY = 86_400_000
IDEMPOTENCY_KEY = IdempotencyKey(b"key", b"print")


def get(key: bytes, transaction: TransactionRef = AUTOCOMMIT) -> Execute[bytes | None]:
    return Execute(Get(key), transaction)


def put(
    key: bytes,
    value: bytes = b"1",
    transaction: TransactionRef = AUTOCOMMIT,
    *,
    ttl: int | None = None,
    precondition: Precondition | None = None,
    idempotency_key: IdempotencyKey | None = None,
) -> Message[Any]:
    """A plain write; with a precondition or an idempotency key, a batch of one.

    As over HTTP, the batch reports whether the key is new, unless that would be a read.
    """
    alone = idempotency_key is not None and transaction is AUTOCOMMIT
    report = precondition is not None or alone
    operation = Set(key, value, "text/plain", ttl, report)
    return write(operation, key, transaction, precondition, idempotency_key)


def delete(
    key: bytes,
    transaction: TransactionRef = AUTOCOMMIT,
    precondition: Precondition | None = None,
    idempotency_key: IdempotencyKey | None = None,
) -> Message[Any]:
    """The same for a deletion."""
    return write(Delete(key, must_exist=True), key, transaction, precondition, idempotency_key)


def write(
    operation: Set | Delete,
    key: bytes,
    transaction: TransactionRef,
    precondition: Precondition | None,
    idempotency_key: IdempotencyKey | None,
) -> Message[Any]:
    if precondition is None and idempotency_key is None:
        return Execute(operation, transaction)
    checks = () if precondition is None else (Check(key, precondition),)
    return Batch((operation,), checks, transaction, idempotency_key)


def scan(
    start: bytes = b"",
    end: bytes | None = None,
    limit: int = 100,
    reverse: bool = False,
    transaction: TransactionRef = AUTOCOMMIT,
    values: bool = True,
) -> Execute[Page]:
    return Execute(Range(start, end, limit, reverse, values), transaction)


def delete_range(
    start: bytes,
    end: bytes | None,
    transaction: TransactionRef = AUTOCOMMIT,
    idempotency_key: IdempotencyKey | None = None,
) -> Batch:
    return Batch((DeleteRange(start, end),), (), transaction, idempotency_key)


def batch(
    *operations: Operation[Any] | Message[Any],
    checks: Sequence[Check] = (),
    transaction: TransactionRef = AUTOCOMMIT,
    idempotency_key: IdempotencyKey | None = None,
) -> Batch:
    """A batch of operations; of a plain request, the operation."""
    bare = tuple(one.operation if isinstance(one, Execute) else one for one in operations)
    return Batch(bare, tuple(checks), transaction, idempotency_key)  # type: ignore[arg-type]


def harness_with(*keys: bytes, settings: Settings | None = None) -> OwnerHarness:
    harness = OwnerHarness(settings=settings)
    for key in keys:
        harness.ask(put(key))
    return harness


def held_with(*keys: bytes) -> tuple[OwnerHarness, HeldJournal]:
    """An owner with some durable keys, whose disk waits from now on."""
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    for key in keys:
        harness.ask(put(key))
    journal.holding = True
    return harness, journal


def catch_up(harness: OwnerHarness, journal: HeldJournal) -> None:
    while journal.pending:
        journal.release()
        harness.settle()


def keys(harness: OwnerHarness, **bounds: Any) -> list[bytes]:
    return [key for key, _ in harness.ask(scan(**bounds)).result.items]


def data(harness: OwnerHarness, transaction: TransactionRef = AUTOCOMMIT) -> dict[bytes, bytes]:
    page = harness.ask(scan(transaction=transaction)).result
    return {key: value_of(record) for key, record in page.items}


def record_in(reply: RecordingReply[bytes | None]) -> bytes:
    """The record that a read has found."""
    record = reply.result
    assert record is not None, "the key is missing"
    return record


def record_of(harness: OwnerHarness, key: bytes, transaction: TransactionRef = AUTOCOMMIT) -> Record:
    return decode(record_in(harness.ask(get(key, transaction))))


def value(harness: OwnerHarness, key: bytes, transaction: TransactionRef = AUTOCOMMIT) -> bytes | None:
    """The value of a key; None: it is missing."""
    record = harness.ask(get(key, transaction)).result
    return None if record is None else value_of(record)


def written(reply: RecordingReply[Any]) -> tuple[int, Result]:
    """The revision that a write has made, and its result: a plain one, or a batch of one.

    A plain write in a transaction makes no revision: look at its result alone.
    """
    if isinstance(reply.result, BatchResponse):
        (result,) = reply.result.results
        return reply.result.revision, result
    return reply.revision, reply.result


def values_of(results: Sequence[Result]) -> list[object]:
    """Results, with values in the place of records."""
    return [
        value_of(one)
        if isinstance(one, bytes)
        else [(key, value_of(record)) for key, record in one.items]
        if isinstance(one, Page)
        else one
        for one in results
    ]


def add(
    harness: OwnerHarness, key: bytes, by: int, transaction: TransactionRef = AUTOCOMMIT
) -> RecordingReply[BatchResponse]:
    return harness.ask(batch(Increment(key, by), transaction=transaction))
