"""Batches: all or nothing, in order, in one revision; and how much they may hold."""

from typing import Any

import msgspec
import pytest

from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    Batch,
    BatchResponse,
    Begin,
    Check,
    Commit,
    Delete,
    DeleteRange,
    Get,
    IdempotencyKey,
    Increment,
    Inspect,
    Message,
    Open,
    Operation,
    Page,
    Range,
    Rollback,
    Set,
    Tick,
    Within,
    Written,
)
from kvactor.core.records import decode, decode_revision
from kvactor.errors import (
    AnswerTooLarge,
    BatchTooLarge,
    ChecksFailed,
    InvalidKey,
    InvalidRequest,
    KvactorError,
    NotAnInteger,
    PreconditionFailed,
    RangeTooLarge,
    StorageFull,
    TransactionConflict,
    TransactionTooLarge,
    ValueTooLarge,
)
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal
from tests.core.builders import ABSENT, ONCE, PRESENT, batch, data, harness_with, held_with, put, shown
from tests.core.harness import OwnerHarness

# -- batches --


def test_a_batch_is_one_revision_in_order_and_sees_its_own_writes() -> None:
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
    assert shown(reply.result.results) == [
        b"1",
        None,
        b"2",
        True,
        None,
        False,
        None,
        7,
        True,
        None,
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
    assert harness.ask(DeleteRange(b"x", None)).result == BatchResponse(0, [0])
    assert harness.ask(put(b"b")).revision == 2


def test_failed_checks_are_all_named_and_nothing_is_done() -> None:
    harness = harness_with(b"a")
    checks = [Check(b"a", (1,)), Check(b"a", ABSENT), Check(b"b", ABSENT), Check(b"b", (1,))]
    error = harness.ask(batch(put(b"c"), checks=checks)).error
    assert isinstance(error, ChecksFailed)
    assert error.details == {"failed": [1, 3]}
    assert harness.owner.revision == 1
    assert data(harness) == {b"a": b"1"}


FAILURES: list[tuple[Operation, type[KvactorError]]] = [
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
@pytest.mark.parametrize("within", [AUTOCOMMIT, SHARED, "t"])
def test_a_batch_that_fails_in_the_middle_leaves_everything_as_it_was(
    operation: Operation, error: type[KvactorError], within: Within
) -> None:
    harness = OwnerHarness(settings=Settings(max_value_size=100, max_batch_size=4))
    harness.ask(put(b"text", b"text"))
    harness.ask(put(b"a"))
    if within is not AUTOCOMMIT:
        harness.ask(Open("t") if within == "t" else Begin(SHARED))
        harness.ask(put(b"b", b"outer", within))
        harness.ask(Begin(within))
        harness.ask(put(b"c", b"inner", within))
        harness.ask(Delete(b"a", within))
    before = data(harness, within)
    reply = harness.ask(
        batch(DeleteRange(b"a", b"d"), put(b"d"), put(b"e"), operation, within=within)
        if error is not RangeTooLarge
        else batch(put(b"x1"), put(b"x2"), put(b"x3"), DeleteRange(b"", None), within=within)
    )
    if error is RangeTooLarge and within is AUTOCOMMIT:
        # Two keys and three: one too many.
        assert len(before) == 2
    assert type(reply.error) is error
    assert isinstance(reply.error, KvactorError)
    assert reply.error.details["operation"] == 3
    assert data(harness, within) == before
    assert harness.owner.revision == 2
    if within is not AUTOCOMMIT:
        assert harness.ask(Inspect(within)).result.depth == 2
        harness.ask(Rollback(within))
        assert data(harness, within) == {b"a": b"1", b"b": b"outer", b"text": b"text"}
        harness.ask(Commit(within))
        assert harness.owner.revision == 3
        assert data(harness) == {b"a": b"1", b"b": b"outer", b"text": b"text"}


@pytest.mark.parametrize("within", [SHARED, "t"])
def test_a_batch_in_a_transaction_writes_into_its_topmost_level(within: Within) -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t") if within == "t" else Begin(SHARED))
    harness.ask(put(b"n", b"5", within))
    harness.ask(Begin(within))
    reply = harness.ask(batch(Increment(b"n", 1), Delete(b"a"), Get(b"n"), within=within))
    assert reply.result.revision == 0
    assert shown(reply.result.results) == [6, True, b"6"]
    assert data(harness, within) == {b"n": b"6"}
    assert data(harness) == {b"a": b"1"}
    harness.ask(Rollback(within))
    assert data(harness, within) == {b"a": b"1", b"n": b"5"}
    harness.ask(batch(Increment(b"n", 1), Delete(b"a"), within=within))
    assert harness.ask(Inspect(within)).result.depth == 1
    assert harness.ask(Commit(within)).revision == 2
    assert data(harness) == {b"n": b"6"}


def test_a_batch_may_speak_in_a_transaction_of_the_greatest_depth() -> None:
    harness = OwnerHarness(settings=Settings(max_transaction_depth=1))
    harness.ask(Open("t"))
    assert harness.ask(batch(put(b"a"), within="t")).error is None
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
def test_what_a_batch_looks_at_in_a_transaction_is_read_even_if_it_fails(one: Batch) -> None:
    harness = OwnerHarness()
    for within in ("t", "u"):
        harness.ask(Open(within))
        harness.ask(msgspec.structs.replace(one, within=within))
    harness.ask(put(b"b"))
    assert harness.ask(Commit("u")).error is None
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_batch_that_only_writes_has_read_nothing_nor_what_it_wrote_itself() -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t"))
    harness.ask(put(b"b", b"5", "t"))
    one = batch(put(b"a", b"1"), Get(b"a"), Increment(b"a", 1), Increment(b"b", 1), within="t")
    harness.ask(one)
    harness.ask(batch(checks=[Check(b"a", PRESENT)], within="t"))
    harness.ask(put(b"a", b"other"))
    harness.ask(put(b"b", b"other"))
    assert harness.ask(Commit("t")).error is None
    assert data(harness) == {b"a": b"2", b"b": b"6"}


def test_a_batch_dooms_who_has_read_what_it_touches_and_nobody_else() -> None:
    harness = harness_with(b"a", b"b")
    for within, key in (("t", b"a"), ("u", b"new"), ("v", b"b")):
        harness.ask(Open(within))
        harness.ask(Get(key, within))
    harness.ask(batch(Get(b"b"), put(b"a"), put(b"new"), put(b"gone"), Delete(b"gone")))
    for within in ("t", "u"):
        assert isinstance(harness.ask(Commit(within)).error, TransactionConflict)
    assert harness.ask(Commit("v")).error is None


def test_what_operations_say_of_transactions_conditions_and_keys_is_not_looked_at_in_a_batch() -> None:
    harness = OwnerHarness()
    reply = harness.ask(
        batch(
            put(b"a", b"1", "no such one", expected=PRESENT, once=ONCE),
            Delete(b"a", "no such one", ABSENT, ONCE),
            Get(b"a", "no such one"),
            Range(within="no such one"),
            DeleteRange(b"", None, "no such one", ONCE),
        )
    )
    assert shown(reply.result.results) == [None, True, None, [], 0]
    assert reply.result.revision == 0


def test_a_batch_that_reads_what_is_staged_is_answered_with_that_flush() -> None:
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
    assert shown(reads[0].result.results) == [b"2"]
    assert shown(reads[1].result.results) == [[(b"a", b"2")]]
    assert isinstance(reads[2].error, InvalidKey)


# -- limits --


def test_a_batch_has_at_most_so_many_checks_and_operations() -> None:
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
def test_an_answer_that_would_be_too_large_is_refused_and_nothing_is_done(read: Operation) -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=300))
    harness.ask(put(b"a", b"v" * 100))
    harness.ask(put(b"b"))
    error = harness.ask(batch(Delete(b"b"), read, read, read)).error
    assert isinstance(error, AnswerTooLarge)
    assert error.details == {"operation": 3}
    assert set(data(harness)) == {b"a", b"b"}
    assert harness.ask(batch(Delete(b"b"), read, read)).error is None


def test_long_keys_count_in_an_answer() -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=1000))
    for n in range(3):
        harness.ask(put(b"%d" % n + b"k" * 400, b""))
    page = harness.ask(Range()).result
    assert (len(page.items), page.more) == (2, True)
    one = Range(limit=1)
    assert harness.ask(batch(one, one)).error is None
    assert isinstance(harness.ask(batch(one, one, one)).error, AnswerTooLarge)


def test_a_page_has_at_least_one_item_and_no_more_than_fit() -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=100))
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key, b"v" * 200))
    for reverse, first in ((False, b"a"), (True, b"c")):
        page = harness.ask(Range(reverse=reverse)).result
        assert ([key for key, _ in page.items], page.more) == ([first], True)
    page = harness.ask(Range(b"c", None)).result
    assert (len(page.items), page.more) == (1, False)
    error = harness.ask(Range(limit=1001)).error
    assert isinstance(error, InvalidRequest)


@pytest.mark.parametrize("within", [AUTOCOMMIT, SHARED, "t"])
def test_a_batch_is_bounded_like_a_transaction(within: Within) -> None:
    harness = OwnerHarness(settings=Settings(max_transaction_size=1000))
    if within is not AUTOCOMMIT:
        harness.ask(Open("t") if within == "t" else Begin(SHARED))
    puts = [put(b"%d" % n, b"v" * 300) for n in range(3)]
    error = harness.ask(batch(*puts, within=within)).error
    assert isinstance(error, TransactionTooLarge)
    assert error.details == {"operation": 2}
    assert data(harness, within) == {}
    # The same key takes its room once.
    assert harness.ask(batch(*[puts[0]] * 3, within=within)).error is None


def test_below_the_floor_of_free_space_what_writes_is_refused_and_what_does_not_is_done() -> None:
    harness = harness_with(b"a")
    harness.ask(put(b"b", once=ONCE))
    harness.tell(Tick(Settings().min_free_space - 1))
    refused: list[Message[Any]] = [
        put(b"a", expected=PRESENT),
        put(b"a", once=IdempotencyKey(b"2", b"")),
        Delete(b"a", expected=PRESENT),
        DeleteRange(b"", None),
        batch(Increment(b"n", 1)),
        batch(Delete(b"a")),
        batch(Get(b"a"), once=IdempotencyKey(b"2", b"")),
    ]
    for message in refused:
        assert isinstance(harness.ask(message).error, StorageFull)
    assert harness.ask(batch(Get(b"a"), Delete(b"none"), DeleteRange(b"x", None))).error is None
    assert isinstance(harness.ask(put(b"a", expected=ABSENT)).error, PreconditionFailed)
    # What is kept can still be told.
    assert harness.ask(put(b"b", once=ONCE)).result == Written(2, True)
    assert set(data(harness)) == {b"a", b"b"}
