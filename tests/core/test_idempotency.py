"""Writes under an idempotency key are done once; the kept response is hidden."""

from collections.abc import Iterator
from typing import Any

import pytest

from kvactor.core.context import Page
from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    BatchResponse,
    Begin,
    Check,
    Commit,
    Message,
    Open,
    Rollback,
    Status,
    TransactionRef,
)
from kvactor.core.operations import INTEGERS, Delete, DeleteRange, Get, Increment, Range, Result
from kvactor.core.records import HIDDEN, Revision, decode_revision, encode
from kvactor.errors import (
    ChecksFailed,
    IdempotencyKeyReused,
    InvalidKey,
    KeyNotFound,
    KvactorError,
    TransactionConflict,
)
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.core.builders import (
    ABSENT,
    DAY,
    IDEMPOTENCY_KEY,
    PRESENT,
    TICK,
    batch,
    data,
    delete,
    delete_range,
    harness_with,
    held_with,
    put,
    scan,
    value,
    values_of,
    written,
)
from tests.core.harness import OwnerHarness, RecordingReply

WRITES: list[tuple[Message[Any], Any]] = [
    (put(b"a", b"2", idempotency_key=IDEMPOTENCY_KEY), BatchResponse(3, [False])),
    (put(b"new", idempotency_key=IDEMPOTENCY_KEY), BatchResponse(3, [True])),
    (put(b"a", idempotency_key=IDEMPOTENCY_KEY, precondition=(1,)), BatchResponse(3, [False])),
    (put(b"new", idempotency_key=IDEMPOTENCY_KEY, precondition=ABSENT), BatchResponse(3, [True])),
    (delete(b"a", idempotency_key=IDEMPOTENCY_KEY), BatchResponse(3, [True])),
    (delete(b"a", idempotency_key=IDEMPOTENCY_KEY, precondition=(1,)), BatchResponse(3, [True])),
    (delete_range(b"", None, idempotency_key=IDEMPOTENCY_KEY), BatchResponse(3, [2])),
    (
        batch(
            Increment(b"n", INTEGERS[0]),
            put(b"a"),
            Delete(b"x"),
            Delete(b"b"),
            idempotency_key=IDEMPOTENCY_KEY,
        ),
        BatchResponse(3, [INTEGERS[0], False, False, True]),
    ),
    (batch(Delete(b"x"), idempotency_key=IDEMPOTENCY_KEY), BatchResponse(3, [False])),
]


@pytest.mark.parametrize(("write", "result"), WRITES, ids=str)
def test_a_write_repeated_under_its_idempotency_key_is_done_once_and_gets_the_same_response(
    write: Message[Any], result: object
) -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal)
    harness.ask(put(b"a"))
    harness.ask(put(b"b"))
    assert harness.ask(write).result == result
    harness.ask(put(b"other"))
    kept = data(harness)
    for _ in range(2):
        again = harness.ask(write)
        assert (again.revision, again.result) == (4, result)
    assert data(harness) == kept
    assert max(journal.rows) == 4
    assert HIDDEN + IDEMPOTENCY_KEY.key in dict(decode_revision(3, journal.rows[3]).changes)


def test_a_response_with_records_and_pages_is_repeated_as_it_was() -> None:
    harness = harness_with(b"a", b"b")
    one = batch(Get(b"a"), Get(b"x"), Range(limit=1), idempotency_key=IDEMPOTENCY_KEY)
    first = harness.ask(one).result
    harness.ask(put(b"a", b"2"))
    assert harness.ask(one).result == first
    assert values_of(first.results) == [b"1", None, [(b"a", b"1")]]


def test_two_writes_at_once_under_one_key_are_done_once_and_wait_for_the_same_flush() -> None:
    harness, journal = held_with()
    replies: list[RecordingReply[Any]] = [RecordingReply(), RecordingReply(), RecordingReply()]
    one = batch(Increment(b"n", 1), idempotency_key=IDEMPOTENCY_KEY)
    other = batch(Increment(b"n", 2), idempotency_key=IdempotencyKey(IDEMPOTENCY_KEY.key, b"other"))
    asked = zip([one, one, other], replies, strict=True)
    harness.owner.drain(harness.now, [(*each, UNCOUNTED) for each in asked])
    late = harness.ask(one)
    assert not any(reply.answered for reply in (*replies, late))
    journal.release()
    harness.settle()
    assert [reply.result for reply in (*replies[:2], late)] == [BatchResponse(1, [1])] * 3
    assert isinstance(replies[2].error, IdempotencyKeyReused)
    assert data(harness) == {b"n": b"1"}
    assert not journal.pending


@pytest.mark.parametrize("memtable", [1, 1 << 20], ids=["folded", "not folded"])
def test_an_idempotency_key_outlives_a_restart(memtable: int) -> None:
    journal, tree = MemoryJournal(), MemoryTree()
    settings = Settings(memtable_size=memtable)
    harness = OwnerHarness(journal, tree, settings)
    one = batch(Increment(b"n", 1), Get(b"n"), idempotency_key=IDEMPOTENCY_KEY)
    first = harness.ask(one).result
    assert (tree.applied == 1) is (memtable == 1)
    again = OwnerHarness(journal, tree, settings)
    assert again.ask(one).result == first
    assert again.owner.revision == 1
    again.now += DAY
    assert again.ask(one).result.results[0] == 2


#: What version 0.1 has kept behind the fingerprint, and the response that it stands for.
KEPT_BY_0_1: list[tuple[bytes, list[Result]]] = [
    (b"\xc3", [True]),  # of a set that has created its key
    (b"\xc2", [False]),  # of one that has not, and of every deletion
    (b"\x02", [2]),  # of a range deleted
    (b"\x00", [0]),
    (b"\x94\xc0\xc3\x07\xc4\x01x", [None, True, 7, b"x"]),  # of a batch
    (b"\x90", []),
]


@pytest.mark.parametrize(("kept", "results"), KEPT_BY_0_1, ids=str)
def test_a_response_that_version_0_1_has_kept_is_repeated(kept: bytes, results: list[Result]) -> None:
    journal = MemoryJournal()
    hidden = HIDDEN + IDEMPOTENCY_KEY.key
    now = OwnerHarness().now
    record = encode(hidden, IDEMPOTENCY_KEY.fingerprint + kept, "", now + DAY, 1, 1)
    journal.append([Revision(1, now, ((hidden, record),))], lambda _: None)
    harness = OwnerHarness(journal)
    for write in (
        put(b"a", idempotency_key=IDEMPOTENCY_KEY),
        delete(b"a", idempotency_key=IDEMPOTENCY_KEY),
        delete_range(b"", None, idempotency_key=IDEMPOTENCY_KEY),
    ):
        assert harness.ask(write).result == BatchResponse(1, results)
    other = IdempotencyKey(IDEMPOTENCY_KEY.key, b"other")
    assert isinstance(harness.ask(put(b"a", idempotency_key=other)).error, IdempotencyKeyReused)
    assert value(harness, b"a") is None


def test_another_request_under_the_same_key_is_refused() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", idempotency_key=IDEMPOTENCY_KEY))
    other = IdempotencyKey(IDEMPOTENCY_KEY.key, b"other")
    for message in (
        put(b"a", idempotency_key=other),
        delete(b"a", idempotency_key=other),
        delete_range(b"", None, idempotency_key=other),
        batch(put(b"b"), idempotency_key=other),
    ):
        reply: RecordingReply[Any] = harness.ask(message)
        assert isinstance(reply.error, IdempotencyKeyReused)
    assert data(harness) == {b"a": b"1"}
    assert (
        harness.ask(
            put(b"b", idempotency_key=IdempotencyKey(b"another key", IDEMPOTENCY_KEY.fingerprint))
        ).result.revision
        == 2
    )


def test_a_write_that_failed_keeps_nothing_and_can_be_tried_again() -> None:
    harness = OwnerHarness()
    failing: list[tuple[Message[Any], type[KvactorError]]] = [
        (put(b"a", idempotency_key=IDEMPOTENCY_KEY, precondition=PRESENT), ChecksFailed),
        (delete(b"a", idempotency_key=IDEMPOTENCY_KEY), KeyNotFound),
        (batch(put(b"b"), Get(b""), idempotency_key=IDEMPOTENCY_KEY), InvalidKey),
        (batch(checks=[Check(b"a", PRESENT)], idempotency_key=IDEMPOTENCY_KEY), ChecksFailed),
    ]
    for message, error in failing:
        assert isinstance(harness.ask(message).error, error)
    assert harness.owner.revision == 0
    harness.ask(put(b"a"))
    assert harness.ask(failing[0][0]).result == BatchResponse(2, [False])


def test_an_idempotency_key_is_forgotten_after_its_window_and_swept() -> None:
    harness = OwnerHarness(settings=Settings(idempotency_window=2.5))
    write = batch(Increment(b"n", 1), idempotency_key=IDEMPOTENCY_KEY)
    assert harness.ask(write).result == BatchResponse(1, [1])
    harness.now += 2499
    harness.tell(TICK)
    assert harness.ask(write).result == BatchResponse(1, [1])
    harness.now += 1
    assert harness.ask(write).result == BatchResponse(2, [2])
    assert harness.ask(Status()).result.keys == 2
    harness.now += 2500
    harness.tell(TICK)
    assert harness.ask(Status()).result.keys == 1
    assert harness.owner.revision == 3
    assert (
        harness.ask(put(b"x", idempotency_key=IdempotencyKey(IDEMPOTENCY_KEY.key, b"other"))).error
        is None
    )


@pytest.mark.parametrize("transaction", [SHARED, "t"])
def test_an_idempotency_key_in_a_transaction_is_kept_with_it_and_forgotten_with_it(
    transaction: TransactionRef,
) -> None:
    harness = OwnerHarness()
    harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
    harness.ask(Begin(transaction))
    write = batch(Increment(b"n", 1), transaction=transaction, idempotency_key=IDEMPOTENCY_KEY)
    assert [harness.ask(write).result for _ in range(2)] == [BatchResponse(0, [1])] * 2
    harness.ask(Rollback(transaction))
    assert data(harness, transaction) == {}
    assert [harness.ask(write).result for _ in range(2)] == [BatchResponse(0, [1])] * 2
    assert data(harness, transaction) == {b"n": b"1"}
    harness.ask(Commit(transaction))
    assert harness.owner.revision == 1
    # Outside of the transaction the answer is the same, with the revision that the commit made.
    assert harness.ask(
        batch(Increment(b"n", 1), idempotency_key=IDEMPOTENCY_KEY)
    ).result == BatchResponse(1, [1])
    assert data(harness) == {b"n": b"1"}


def test_one_of_two_transactions_with_the_same_idempotency_key_commits_and_the_other_conflicts() -> (
    None
):
    harness = OwnerHarness()
    for transaction in ("t", "u"):
        harness.ask(Open(transaction))
        harness.ask(
            batch(put(transaction.encode()), transaction=transaction, idempotency_key=IDEMPOTENCY_KEY)
        )
    assert harness.ask(Commit("t")).error is None
    assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)
    assert data(harness) == {b"t": b"1"}


def test_a_write_in_a_transaction_reads_nothing_under_an_idempotency_key_either() -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t"))
    assert written(harness.ask(put(b"b", b"t", "t", idempotency_key=IDEMPOTENCY_KEY))) == (0, False)
    harness.ask(put(b"b"))
    assert harness.ask(Commit("t")).error is None
    assert data(harness)[b"b"] == b"t"


def hidden(harness: OwnerHarness) -> Iterator[bytes]:
    for row in harness.journal.replay(0):
        yield from (key for key, record in row.changes if key.startswith(HIDDEN) and record)


@pytest.mark.parametrize("transaction", [AUTOCOMMIT, SHARED, "t"])
def test_a_kept_response_is_in_no_range_that_is_read_or_deleted(transaction: TransactionRef) -> None:
    harness = OwnerHarness()
    if transaction is not AUTOCOMMIT:
        harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
    write = batch(Increment(b"n", 1), transaction=transaction, idempotency_key=IDEMPOTENCY_KEY)
    harness.ask(write)
    for reverse in (True, False):
        for end in (None, b"\xff\xff"):
            page = harness.ask(scan(end=end, limit=1, reverse=reverse, transaction=transaction)).result
            assert ([key for key, _ in page.items], page.more) == ([b"n"], False)
        assert harness.ask(scan(HIDDEN, None, 9, reverse, transaction)).result.items == []
    inside = harness.ask(batch(Range(), Range(reverse=True), transaction=transaction)).result.results
    assert all(isinstance(page, Page) and len(page.items) == 1 for page in inside)
    for start in (b"", HIDDEN):
        for end in (None, b"\xff\xff"):
            harness.ask(delete_range(start, end, transaction))
            harness.ask(batch(DeleteRange(start, end), transaction=transaction))
    assert harness.ask(write).result.results == [1]
    assert data(harness, transaction) == {}
    if transaction is not AUTOCOMMIT:
        harness.ask(Commit(transaction))
    assert list(hidden(harness)) == [HIDDEN + IDEMPOTENCY_KEY.key]
