"""What the tests of operations say often."""

from collections.abc import Sequence

from kvactor.core.messages import (
    OUTSIDE,
    Batch,
    BatchResult,
    Check,
    Expected,
    Increment,
    Once,
    Operation,
    Page,
    Presence,
    Range,
    Result,
    Set,
    Tick,
    Within,
)
from kvactor.core.records import value_of
from kvactor.settings import Settings
from tests.core.harness import Desk, HeldJournal, Said

ABSENT, PRESENT = Presence.ABSENT, Presence.PRESENT
TICK = Tick(1 << 40)
DAY = 86_400_000
ONCE = Once(b"key", b"print")


def put(
    key: bytes,
    value: bytes = b"1",
    within: Within = OUTSIDE,
    *,
    ttl: int | None = None,
    expected: Expected | None = None,
    once: Once | None = None,
) -> Set:
    return Set(key, value, "text/plain", within, ttl, expected, once)


def batch(
    *operations: Operation,
    checks: Sequence[Check] = (),
    within: Within = OUTSIDE,
    once: Once | None = None,
) -> Batch:
    return Batch(tuple(checks), operations, within, once)


def desk_with(*keys: bytes, settings: Settings | None = None) -> Desk:
    desk = Desk(settings=settings)
    for key in keys:
        desk.ask(put(key))
    return desk


def held_with(*keys: bytes) -> tuple[Desk, HeldJournal]:
    """A desk with some durable keys, whose disk waits from now on."""
    journal = HeldJournal(holding=False)
    desk = Desk(journal)
    for key in keys:
        desk.ask(put(key))
    journal.holding = True
    return desk, journal


def catch_up(desk: Desk, journal: HeldJournal) -> None:
    while journal.pending:
        journal.release()
        desk.settle()


def data(desk: Desk, within: Within = OUTSIDE) -> dict[bytes, bytes]:
    page = desk.ask(Range(within=within)).result
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


def add(desk: Desk, key: bytes, by: int, within: Within = OUTSIDE) -> Said[BatchResult]:
    return desk.ask(batch(Increment(key, by), within=within))
