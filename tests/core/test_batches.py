"""Batches: all or nothing, in order, in one revision; and how much they may hold."""

from typing import Any

import msgspec
import pytest

from kvactor.core.context import Page
from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    Batch,
    BatchResponse,
    Begin,
    Check,
    Commit,
    Inspect,
    Message,
    Open,
    Rollback,
    TransactionRef,
)
from kvactor.core.operations import Delete, DeleteRange, Get, Increment, Operation, Range, Set
from kvactor.core.records import decode, decode_revision
from kvactor.core.transaction import LEVEL_OVERHEAD, TRANSACTION_OVERHEAD
from kvactor.errors import (
    AnswerTooLarge,
    BatchTooLarge,
    ChecksFailed,
    InvalidKey,
    InvalidRequest,
    KvactorError,
    NotAnInteger,
    RangeTooLarge,
    StorageFull,
    TransactionConflict,
    TransactionTooLarge,
    ValueTooLarge,
)
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal
from tests.core.builders import (
    ABSENT,
    IDEMPOTENCY_KEY,
    PRESENT,
    batch,
    data,
    delete,
    delete_range,
    get,
    harness_with,
    held_with,
    put,
    scan,
    values_of,
    written,
)
from tests.core.harness import OwnerHarness, SmallJournal

# -- batches --


def test_a_batch_runs_in_order_in_one_revision_and_sees_its_own_writes() -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal)
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key))
    reply = harness.ask(
        batch(
            Get(b"a"),
            put(b"a", b"2"),
            Get(b"a"),
            Delete(b"a"),
            Get(b"a"),
            Delete(b"a"),
            put(b"a", b"3"),
            Increment(b"a", 4),
            Delete(b"b"),
            put(b"bb"),
            Range(b"a", b"c", reverse=True),
            DeleteRange(b"b", b"bbb"),
            Range(limit=1),
            checks=[Check(b"a", (1,)), Check(b"z", ABSENT), Check(b"b", PRESENT)],
        )
    )
    assert reply.result.revision == reply.revision == 4
    assert values_of(reply.result.results) == [
        b"1",
        False,
        b"2",
        True,
        None,
        False,
        False,
        7,
        True,
        False,
        [(b"bb", b"1"), (b"a", b"7")],
        1,
        [(b"a", b"7")],
    ]
    page = reply.result.results[-1]
    assert isinstance(page, Page)
    assert page.more
    changes = dict(decode_revision(4, journal.rows[4]).changes)
    assert set(changes) == {b"a", b"b"}
    assert changes[b"b"] is None
    assert (decode(changes[b"a"] or b"").revision, decode(changes[b"a"] or b"").created) == (4, 1)
    assert data(harness) == {b"a": b"7", b"c": b"1"}


def test_a_batch_that_changes_nothing_makes_no_revision() -> None:
    harness = harness_with(b"a")
    for one in (
        batch(),
        batch(Get(b"a"), Range()),
        batch(Delete(b"none"), DeleteRange(b"x", None)),
        batch(put(b"new"), Delete(b"new")),
        batch(checks=[Check(b"a", PRESENT)]),
    ):
        reply = harness.ask(one)
        assert (reply.revision, reply.result.revision) == (1, 0)
    assert harness.ask(delete_range(b"x", None)).result == BatchResponse(0, [0])
    assert harness.ask(put(b"b")).revision == 2


def test_a_batch_with_failed_checks_names_them_all_and_does_nothing() -> None:
    harness = harness_with(b"a")
    checks = [Check(b"a", (1,)), Check(b"a", ABSENT), Check(b"b", ABSENT), Check(b"b", (1,))]
    error = harness.ask(batch(put(b"c"), checks=checks)).error
    assert isinstance(error, ChecksFailed)
    assert error.details == {"failed": [1, 3]}
    assert harness.owner.revision == 1
    assert data(harness) == {b"a": b"1"}


FAILURES: list[tuple[Operation[Any], type[KvactorError]]] = [
    (Increment(b"text", 1), NotAnInteger),
    (Get(b""), InvalidKey),
    (Set(b"k" * 512, b"", ""), InvalidKey),
    (Delete(b""), InvalidKey),
    (Increment(b"", 1), InvalidKey),
    (Set(b"k", b"v" * 101, ""), ValueTooLarge),
    (Range(limit=0), InvalidRequest),
    (DeleteRange(b"a", None), RangeTooLarge),
]


@pytest.mark.parametrize(("operation", "error"), FAILURES, ids=lambda one: getattr(one, "code", None))
@pytest.mark.parametrize("transaction", [AUTOCOMMIT, SHARED, "t"])
def test_a_batch_that_fails_in_the_middle_leaves_everything_as_it_was(
    operation: Operation[Any], error: type[KvactorError], transaction: TransactionRef
) -> None:
    harness = OwnerHarness(settings=Settings(max_value_size=100, max_batch_size=4))
    harness.ask(put(b"text", b"text"))
    harness.ask(put(b"a"))
    if transaction is not AUTOCOMMIT:
        harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
        harness.ask(put(b"b", b"outer", transaction))
        harness.ask(Begin(transaction))
        harness.ask(put(b"c", b"inner", transaction))
        harness.ask(delete(b"a", transaction))
    before = data(harness, transaction)
    reply = harness.ask(
        batch(DeleteRange(b"a", b"d"), put(b"d"), put(b"e"), operation, transaction=transaction)
        if error is not RangeTooLarge
        else batch(put(b"x1"), put(b"x2"), put(b"x3"), DeleteRange(b"", None), transaction=transaction)
    )
    if error is RangeTooLarge and transaction is AUTOCOMMIT:
        # Two keys and three: one too many.
        assert len(before) == 2
    assert type(reply.error) is error
    assert isinstance(reply.error, KvactorError)
    assert reply.error.details["operation"] == 3
    assert data(harness, transaction) == before
    assert harness.owner.revision == 2
    if transaction is not AUTOCOMMIT:
        assert harness.ask(Inspect(transaction)).result.depth == 2
        harness.ask(Rollback(transaction))
        assert data(harness, transaction) == {b"a": b"1", b"b": b"outer", b"text": b"text"}
        harness.ask(Commit(transaction))
        assert harness.owner.revision == 3
        assert data(harness) == {b"a": b"1", b"b": b"outer", b"text": b"text"}


@pytest.mark.parametrize("transaction", [SHARED, "t"])
def test_a_batch_in_a_transaction_writes_into_its_topmost_level(transaction: TransactionRef) -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
    harness.ask(put(b"n", b"5", transaction))
    harness.ask(Begin(transaction))
    reply = harness.ask(batch(Increment(b"n", 1), Delete(b"a"), Get(b"n"), transaction=transaction))
    assert reply.result.revision == 0
    assert values_of(reply.result.results) == [6, True, b"6"]
    assert data(harness, transaction) == {b"n": b"6"}
    assert data(harness) == {b"a": b"1"}
    harness.ask(Rollback(transaction))
    assert data(harness, transaction) == {b"a": b"1", b"n": b"5"}
    harness.ask(batch(Increment(b"n", 1), Delete(b"a"), transaction=transaction))
    assert harness.ask(Inspect(transaction)).result.depth == 1
    assert harness.ask(Commit(transaction)).revision == 2
    assert data(harness) == {b"n": b"6"}


def test_a_batch_in_a_transaction_of_the_greatest_depth_is_done() -> None:
    harness = OwnerHarness(settings=Settings(max_transaction_depth=1))
    harness.ask(Open("t"))
    assert harness.ask(batch(put(b"a"), transaction="t")).error is None
    assert harness.ask(Inspect("t")).result.depth == 1


READS: list[Batch] = [
    batch(Get(b"a")),
    batch(checks=[Check(b"a", ABSENT)]),
    batch(checks=[Check(b"a", PRESENT)]),
    batch(Delete(b"a")),
    batch(Increment(b"a", 1)),
    batch(Range(b"a", b"b")),
    batch(DeleteRange(b"a", b"b")),
    batch(put(b"x"), Get(b"a"), Get(b"")),
]


@pytest.mark.parametrize("one", READS, ids=str)
def test_a_batch_in_a_transaction_that_fails_has_read_the_keys_that_it_looked_at(one: Batch) -> None:
    harness = OwnerHarness()
    for transaction in ("t", "u"):
        harness.ask(Open(transaction))
        harness.ask(msgspec.structs.replace(one, transaction=transaction))
    harness.ask(put(b"b"))
    assert harness.ask(Commit("u")).error is None
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_batch_in_a_transaction_that_reads_only_its_own_writes_has_read_nothing() -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t"))
    harness.ask(put(b"b", b"5", "t"))
    one = batch(put(b"a", b"1"), Get(b"a"), Increment(b"a", 1), Increment(b"b", 1), transaction="t")
    harness.ask(one)
    harness.ask(batch(checks=[Check(b"a", PRESENT)], transaction="t"))
    harness.ask(put(b"a", b"other"))
    harness.ask(put(b"b", b"other"))
    assert harness.ask(Commit("t")).error is None
    assert data(harness) == {b"a": b"2", b"b": b"6"}


def test_a_batch_conflicts_with_the_readers_of_the_keys_it_changes_and_with_no_others() -> None:
    harness = harness_with(b"a", b"b")
    for transaction, key in (("t", b"a"), ("u", b"new"), ("v", b"b")):
        harness.ask(Open(transaction))
        harness.ask(get(key, transaction))
    harness.ask(batch(Get(b"b"), put(b"a"), put(b"new"), put(b"gone"), Delete(b"gone")))
    for transaction in ("t", "u"):
        assert isinstance(harness.ask(Commit(transaction)).error, TransactionConflict)
    assert harness.ask(Commit("v")).error is None


def test_a_set_in_a_batch_says_whether_its_key_is_new_only_if_it_is_asked_to() -> None:
    harness = harness_with(b"a")
    asked = [Set(key, b"2", "", report_created=True) for key in (b"a", b"new", b"new")]
    reply = harness.ask(batch(*asked, Set(b"newer", b"", "")))
    assert reply.result == BatchResponse(2, [False, True, False, False])


def test_a_set_in_a_transaction_that_says_whether_its_key_is_new_has_read_it() -> None:
    harness = OwnerHarness()
    for transaction, report in (("t", True), ("u", False)):
        harness.ask(Open(transaction))
        one = Set(b"a", b"", "", report_created=report)
        assert harness.ask(batch(one, transaction=transaction)).result.results == [report]
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)
    assert harness.ask(Commit("u")).error is None


def test_a_batch_that_reads_staged_writes_is_answered_with_their_flush() -> None:
    harness, journal = held_with(b"a", b"b")
    harness.ask(put(b"a", b"2"))
    reads = [
        harness.ask(batch(Get(b"a"))),
        harness.ask(batch(Range(b"a", b"b"))),
        harness.ask(batch(Get(b"a"), Get(b""))),
        harness.ask(batch(Get(b"b"), Range(b"b", None))),
    ]
    assert [reply.answered for reply in reads] == [False, False, False, True]
    journal.release()
    harness.settle()
    assert [reply.revision for reply in reads] == [3, 3, 3, 2]
    assert values_of(reads[0].result.results) == [b"2"]
    assert values_of(reads[1].result.results) == [[(b"a", b"2")]]
    assert isinstance(reads[2].error, InvalidKey)


# -- limits --


def test_a_batch_with_more_checks_and_operations_than_the_limit_is_refused() -> None:
    harness = OwnerHarness(settings=Settings(max_batch_size=3))
    check = Check(b"x", ABSENT)
    assert harness.ask(batch(Get(b"a"), Get(b"a"), checks=[check])).error is None
    for one in (
        batch(*[put(b"a")] * 4),
        batch(*[put(b"a")] * 2, checks=[check] * 2),
        batch(checks=[check] * 4),
    ):
        assert isinstance(harness.ask(one).error, BatchTooLarge)
    assert harness.owner.revision == 0


@pytest.mark.parametrize("read", [Get(b"a"), Range()], ids=["get", "range"])
def test_a_batch_with_results_that_are_too_large_is_refused_and_nothing_is_done(
    read: Operation[Any],
) -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=300))
    harness.ask(put(b"a", b"v" * 100))
    harness.ask(put(b"b"))
    error = harness.ask(batch(Delete(b"b"), read, read, read)).error
    assert isinstance(error, AnswerTooLarge)
    assert error.details == {"operation": 3}
    assert set(data(harness)) == {b"a", b"b"}
    assert harness.ask(batch(Delete(b"b"), read, read)).error is None


def test_long_keys_count_among_the_bytes_of_a_result() -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=1000))
    for n in range(3):
        harness.ask(put(b"%d" % n + b"k" * 400, b""))
    page = harness.ask(scan()).result
    assert (len(page.items), page.more) == (2, True)
    one = scan(limit=1)
    assert harness.ask(batch(one, one)).error is None
    assert isinstance(harness.ask(batch(one, one, one)).error, AnswerTooLarge)


def test_a_page_has_at_least_one_item_and_no_more_than_fit() -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=100))
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key, b"v" * 200))
    for reverse, first in ((False, b"a"), (True, b"c")):
        page = harness.ask(scan(reverse=reverse)).result
        assert ([key for key, _ in page.items], page.more) == ([first], True)
    page = harness.ask(scan(b"c", None)).result
    assert (len(page.items), page.more) == (1, False)
    error = harness.ask(scan(limit=1001)).error
    assert isinstance(error, InvalidRequest)


@pytest.mark.parametrize("transaction", [AUTOCOMMIT, SHARED, "t"])
def test_a_batch_that_holds_more_than_a_transaction_may_is_refused(transaction: TransactionRef) -> None:
    empty = TRANSACTION_OVERHEAD + LEVEL_OVERHEAD * (1 if transaction is AUTOCOMMIT else 2)
    harness = OwnerHarness(settings=Settings(max_transaction_size=empty + 1000))
    if transaction is not AUTOCOMMIT:
        harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
    puts = [put(b"%d" % n, b"v" * 300) for n in range(3)]
    error = harness.ask(batch(*puts, transaction=transaction)).error
    assert isinstance(error, TransactionTooLarge)
    assert error.details == {"operation": 2}
    assert data(harness, transaction) == {}
    # The same key takes its room once.
    assert harness.ask(batch(*[puts[0]] * 3, transaction=transaction)).error is None


def test_a_batch_that_writes_below_the_floor_of_free_space_is_refused_and_one_that_reads_is_done() -> (
    None
):
    journal = SmallJournal(1 << 40)
    harness = OwnerHarness(journal)
    harness.ask(put(b"a"))
    harness.ask(put(b"b", idempotency_key=IDEMPOTENCY_KEY))
    journal.free = Settings().min_free_space - 1
    harness.tick()
    refused: list[Message[Any]] = [
        put(b"a", precondition=PRESENT),
        put(b"a", idempotency_key=IdempotencyKey(b"2", b"")),
        batch(Increment(b"n", 1)),
        batch(Delete(b"a"), Set(b"b", b"", "")),
        batch(Get(b"a"), idempotency_key=IdempotencyKey(b"2", b"")),
    ]
    for message in refused:
        assert isinstance(harness.ask(message).error, StorageFull)
    assert harness.ask(batch(Get(b"a"), Delete(b"none"), DeleteRange(b"x", None))).error is None
    assert isinstance(harness.ask(put(b"a", precondition=ABSENT)).error, ChecksFailed)
    # A kept response can still be repeated.
    assert written(harness.ask(put(b"b", idempotency_key=IDEMPOTENCY_KEY))) == (2, True)
    assert set(data(harness)) == {b"a", b"b"}
