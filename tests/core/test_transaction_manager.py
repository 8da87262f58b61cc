"""The shared transaction and the isolated ones: conflicts, idle time, repeated commits, limits."""

import pytest

from kvactor.core.messages import SHARED, Begin, Commit, Drop, Inspect, Open, Rollback, Status
from kvactor.core.records import NEVER
from kvactor.errors import (
    InvalidRequest,
    NoTransaction,
    TooManyTransactions,
    TransactionConflict,
    TransactionNotFound,
)
from kvactor.settings import Settings
from tests.core.builders import TICK, get, keys, put, value
from tests.core.harness import HeldJournal, OwnerHarness


def test_an_inner_rollback_keeps_the_read_set() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(Begin("t"))
    harness.ask(get(b"a", "t"))
    harness.ask(Rollback("t"))
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_transaction_that_only_wrote_never_conflicts() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(put(b"a", b"t", "t"))
    harness.ask(put(b"a", b"other"))
    assert harness.ask(Commit("t")).revision == 2
    assert value(harness, b"a") == b"t"


def test_a_transaction_that_read_its_own_write_does_not_conflict() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(put(b"a", b"t", "t"))
    harness.ask(get(b"a", "t"))
    harness.ask(put(b"a", b"other"))
    assert harness.ask(Commit("t")).error is None


def test_a_conflicted_transaction_refuses_every_request_but_its_end() -> None:
    harness = OwnerHarness()
    for transaction in ("t", "u", "v"):
        harness.ask(Open(transaction))
        harness.ask(Begin(transaction))
        harness.ask(get(b"a", transaction))
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Rollback("t")).error, TransactionConflict)
    assert isinstance(harness.ask(Inspect("t")).error, TransactionConflict)
    assert harness.ask(Drop("t")).result.depth == 0
    assert isinstance(harness.ask(Inspect("t")).error, TransactionNotFound)
    # A commit ends it, and gets the same error when it is repeated.
    for _ in range(3):
        assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)
    assert isinstance(harness.ask(get(b"a", "u")).error, TransactionConflict)
    assert harness.ask(Status()).result.transactions == 1


def test_a_rollback_ends_a_conflicted_transaction_of_one_level() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(get(b"a", "t"))
    harness.ask(put(b"a"))
    assert harness.ask(Rollback("t")).result.depth == 0


def test_a_commit_that_is_repeated_waits_for_the_same_flush_and_gets_the_same_answer() -> None:
    journal = HeldJournal()
    harness = OwnerHarness(journal, settings=Settings(remembered_transactions=1))
    harness.ask(Open("t"))
    harness.ask(put(b"a", b"1", "t"))
    first, second = harness.ask(Commit("t")), harness.ask(Commit("t"))
    assert not first.answered
    assert not second.answered
    journal.holding = False
    journal.release()
    harness.settle()
    assert (first.revision, first.result) == (second.revision, second.result)
    harness.ask(Open("u"))
    harness.ask(Commit("u"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionNotFound)


def test_a_commit_that_wrote_nothing_waits_for_the_flush_of_what_it_read() -> None:
    journal = HeldJournal()
    harness = OwnerHarness(journal)
    harness.ask(put(b"a"))
    harness.ask(Open("t"))
    harness.ask(get(b"a", "t"))
    committed = harness.ask(Commit("t"))
    assert not committed.answered
    journal.release()
    harness.settle()
    assert committed.revision == 1


def test_a_transaction_idle_for_its_timeout_is_rolled_back_by_its_next_request_or_a_tick() -> None:
    harness = OwnerHarness()
    for transaction, timeout in (("t", None), ("u", 60_000)):
        assert harness.ask(Open(transaction, timeout)).result.expires_at == harness.now + (
            timeout or 30_000
        )
        harness.ask(put(transaction.encode(), b"1", transaction))
    harness.now += 29_999
    harness.ask(get(b"x", "u"))
    harness.now += 1
    assert isinstance(harness.ask(Commit("t")).error, TransactionNotFound)
    assert harness.ask(Inspect("u")).result.depth == 1
    harness.now += 60_000
    harness.tell(TICK)
    assert harness.ask(Status()).result.transactions == 0
    assert keys(harness) == []


def test_a_new_transaction_takes_the_place_of_a_conflicted_one() -> None:
    harness = OwnerHarness(settings=Settings(max_transactions=2))
    for transaction in ("t", "u"):
        harness.ask(Open(transaction))
    harness.ask(get(b"x", "t"))
    assert isinstance(harness.ask(Open("v")).error, TooManyTransactions)
    harness.ask(put(b"x"))
    assert harness.ask(Open("v")).error is None
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)
    assert harness.ask(Inspect("u")).result.depth == 1
    assert isinstance(harness.ask(Open("w")).error, TooManyTransactions)


def test_an_idle_timeout_out_of_bounds_is_refused() -> None:
    harness = OwnerHarness()
    for timeout in (0, -1, 300_001):
        assert isinstance(harness.ask(Open("t", timeout)).error, InvalidRequest)
    assert harness.ask(Open("t", 300_000)).error is None


def test_the_shared_transaction_stays_open_by_default_and_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = OwnerHarness()
    assert harness.ask(Begin(SHARED)).result.expires_at == NEVER
    harness.ask(Begin(SHARED))
    harness.now += 60_000
    for _ in range(3):
        harness.tell(TICK)
    assert caplog.text.count("has been open for 60 s, at depth 2") == 1
    report = harness.ask(Status()).result
    assert (report.shared_depth, report.shared_age) == (2, 60_000)
    assert harness.ask(Drop(SHARED)).result.depth == 0
    assert isinstance(harness.ask(Drop(SHARED)).error, NoTransaction)
    assert isinstance(harness.ask(Inspect(SHARED)).error, NoTransaction)


@pytest.mark.parametrize("ticks", [True, False])
def test_the_shared_transaction_with_an_idle_timeout_is_rolled_back_at_its_time(
    ticks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    harness = OwnerHarness(settings=Settings(shared_transaction_idle_timeout=5))
    harness.ask(Begin(SHARED))
    harness.ask(put(b"a", b"1", SHARED))
    harness.now += 5000
    if ticks:
        harness.tell(TICK)
    assert isinstance(harness.ask(Commit(SHARED)).error, NoTransaction)
    assert "the shared transaction was idle for 5 s and has been rolled back" in caplog.text


def test_a_commit_of_the_shared_transaction_overwrites_the_writes_made_meanwhile() -> None:
    harness = OwnerHarness()
    harness.ask(Begin(SHARED))
    assert value(harness, b"a", SHARED) is None
    harness.ask(put(b"a", b"outside"))
    assert value(harness, b"a", SHARED) == b"outside"
    harness.ask(put(b"a", b"shared", SHARED))
    harness.ask(put(b"a", b"outside again"))
    harness.ask(Commit(SHARED))
    assert value(harness, b"a") == b"shared"
