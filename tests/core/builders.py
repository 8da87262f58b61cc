"""What the tests of operations say often."""

from collections.abc import Sequence

from kvactor.core.messages import (
    AUTOCOMMIT,
    Batch,
    BatchResponse,
    Check,
    IdempotencyKey,
    Increment,
    Operation,
    Page,
    Precondition,
    Presence,
    Range,
    Result,
    Set,
    Tick,
    Within,
)
from kvactor.core.records import value_of
from kvactor.settings import Settings
from tests.core.harness import HeldJournal, OwnerHarness, RecordingReply

ABSENT, PRESENT = Presence.ABSENT, Presence.PRESENT
TICK = Tick(1 << 40)
DAY = 86_400_000
ONCE = IdempotencyKey(b"key", b"print")


def put(
    key: bytes,
    value: bytes = b"1",
    within: Within = AUTOCOMMIT,
    *,
    ttl: int | None = None,
    expected: Precondition | None = None,
    once: IdempotencyKey | None = None,
) -> Set:
    return Set(key, value, "text/plain", within, ttl, expected, once)


def batch(
    *operations: Operation,
    checks: Sequence[Check] = (),
    within: Within = AUTOCOMMIT,
    once: IdempotencyKey | None = None,
) -> Batch:
    return Batch(tuple(checks), operations, within, once)


def harness_with(*keys: bytes, settings: Settings | None = None) -> OwnerHarness:
    harness = OwnerHarness(settings=settings)
    for key in keys:
        harness.ask(put(key))
    return harness


def held_with(*keys: bytes) -> tuple[OwnerHarness, HeldJournal]:
    """A desk with some durable keys, whose disk waits from now on."""
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


def data(harness: OwnerHarness, within: Within = AUTOCOMMIT) -> dict[bytes, bytes]:
    page = harness.ask(Range(within=within)).result
    return {key: value_of(record) for key, record in page.items}


def shown(results: Sequence[Result]) -> list[object]:
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
    harness: OwnerHarness, key: bytes, by: int, within: Within = AUTOCOMMIT
) -> RecordingReply[BatchResponse]:
    return harness.ask(batch(Increment(key, by), within=within))
