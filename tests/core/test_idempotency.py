"""Writes under an idempotency key are done once; what is kept for it, nobody sees."""

from collections.abc import Iterator
from typing import Any

import pytest

from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    BatchResponse,
    Begin,
    Check,
    Commit,
    Delete,
    DeleteRange,
    Get,
    IdempotencyKey,
    Increment,
    Message,
    Open,
    Page,
    Range,
    Rollback,
    Status,
    Within,
    Written,
)
from kvactor.core.operations import INTEGERS
from kvactor.core.records import HIDDEN, decode_revision
from kvactor.errors import (
    ChecksFailed,
    IdempotencyKeyReused,
    InvalidKey,
    KeyNotFound,
    KvactorError,
    PreconditionFailed,
    TransactionConflict,
)
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.core.builders import (
    ABSENT,
    DAY,
    ONCE,
    PRESENT,
    TICK,
    batch,
    data,
    harness_with,
    held_with,
    put,
    shown,
)
from tests.core.harness import OwnerHarness, RecordingReply

WRITES: list[tuple[Message[Any], Any]] = [
    (put(b"a", b"2", once=ONCE), Written(3, False)),
    (put(b"new", once=ONCE), Written(3, True)),
    (put(b"a", once=ONCE, expected=(1,)), Written(3, False)),
    (put(b"new", once=ONCE, expected=ABSENT), Written(3, True)),
    (Delete(b"a", once=ONCE), Written(3, False)),
    (Delete(b"a", once=ONCE, expected=(1,)), Written(3, False)),
    (DeleteRange(b"", None, once=ONCE), BatchResponse(3, [2])),
    (
        batch(Increment(b"n", INTEGERS[0]), put(b"a"), Delete(b"x"), Delete(b"b"), once=ONCE),
        BatchResponse(3, [INTEGERS[0], None, False, True]),
    ),
    (batch(Delete(b"x"), once=ONCE), BatchResponse(3, [False])),
]


@pytest.mark.parametrize(("write", "result"), WRITES, ids=str)
def test_a_write_that_comes_again_under_its_key_is_not_done_again_and_gets_the_same_answer(
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
    # Only what is not hidden is anyone's business.
    assert HIDDEN + ONCE.key in dict(decode_revision(3, journal.rows[3]).changes)


def test_records_and_pages_are_kept_too() -> None:
    harness = harness_with(b"a", b"b")
    one = batch(Get(b"a"), Get(b"x"), Range(limit=1), once=ONCE)
    first = harness.ask(one).result
    harness.ask(put(b"a", b"2"))
    assert harness.ask(one).result == first
    assert shown(first.results) == [b"1", None, [(b"a", b"1")]]


def test_two_at_once_under_one_key_are_done_once_and_wait_for_the_same_flush() -> None:
    harness, journal = held_with()
    replies: list[RecordingReply[Any]] = [RecordingReply(), RecordingReply(), RecordingReply()]
    one = batch(Increment(b"n", 1), once=ONCE)
    other = batch(Increment(b"n", 2), once=IdempotencyKey(ONCE.key, b"other"))
    harness.owner.drain(harness.now, list(zip([one, one, other], replies, strict=True)))
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
    one = batch(Increment(b"n", 1), Get(b"n"), once=ONCE)
    first = harness.ask(one).result
    assert (tree.applied == 1) is (memtable == 1)
    again = OwnerHarness(journal, tree, settings)
    assert again.ask(one).result == first
    assert again.owner.revision == 1
    again.now += DAY
    assert again.ask(one).result.results[0] == 2


def test_another_request_under_the_same_key_is_refused() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", once=ONCE))
    other = IdempotencyKey(ONCE.key, b"other")
    for message in (
        put(b"a", once=other),
        Delete(b"a", once=other),
        DeleteRange(b"", None, once=other),
        batch(put(b"b"), once=other),
    ):
        reply: RecordingReply[Any] = harness.ask(message)
        assert isinstance(reply.error, IdempotencyKeyReused)
    assert data(harness) == {b"a": b"1"}
    assert (
        harness.ask(put(b"b", once=IdempotencyKey(b"another key", ONCE.fingerprint))).result.revision
        == 2
    )


def test_a_write_that_failed_is_not_kept() -> None:
    harness = OwnerHarness()
    failing: list[tuple[Message[Any], type[KvactorError]]] = [
        (put(b"a", once=ONCE, expected=PRESENT), PreconditionFailed),
        (Delete(b"a", once=ONCE), KeyNotFound),
        (batch(put(b"b"), Get(b""), once=ONCE), InvalidKey),
        (batch(checks=[Check(b"a", PRESENT)], once=ONCE), ChecksFailed),
    ]
    for message, error in failing:
        assert isinstance(harness.ask(message).error, error)
    assert harness.owner.revision == 0
    harness.ask(put(b"a"))
    assert harness.ask(failing[0][0]).result == Written(2, False)


def test_an_idempotency_key_is_forgotten_after_its_window_and_swept() -> None:
    harness = OwnerHarness(settings=Settings(idempotency_window=2.5))
    write = batch(Increment(b"n", 1), once=ONCE)
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
    assert harness.ask(put(b"x", once=IdempotencyKey(ONCE.key, b"other"))).error is None


@pytest.mark.parametrize("within", [SHARED, "t"])
def test_an_idempotency_key_in_a_transaction_is_kept_with_it_and_forgotten_with_it(
    within: Within,
) -> None:
    harness = OwnerHarness()
    harness.ask(Open("t") if within == "t" else Begin(SHARED))
    harness.ask(Begin(within))
    write = batch(Increment(b"n", 1), within=within, once=ONCE)
    assert [harness.ask(write).result for _ in range(2)] == [BatchResponse(0, [1])] * 2
    harness.ask(Rollback(within))
    assert data(harness, within) == {}
    assert [harness.ask(write).result for _ in range(2)] == [BatchResponse(0, [1])] * 2
    assert data(harness, within) == {b"n": b"1"}
    harness.ask(Commit(within))
    assert harness.owner.revision == 1
    # From outside, the same is told, with the revision that came of it.
    assert harness.ask(batch(Increment(b"n", 1), once=ONCE)).result == BatchResponse(1, [1])
    assert data(harness) == {b"n": b"1"}


def test_of_two_transactions_with_the_same_idempotency_key_one_goes_through() -> None:
    harness = OwnerHarness()
    for within in ("t", "u"):
        harness.ask(Open(within))
        harness.ask(batch(put(within.encode()), within=within, once=ONCE))
    assert harness.ask(Commit("t")).error is None
    assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)
    assert data(harness) == {b"t": b"1"}


def test_a_blind_write_is_blind_under_an_idempotency_key_too() -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t"))
    assert harness.ask(put(b"b", b"t", "t", once=ONCE)).result == Written(0, False)
    harness.ask(put(b"b"))
    assert harness.ask(Commit("t")).error is None
    assert data(harness)[b"b"] == b"t"


def hidden(harness: OwnerHarness) -> Iterator[bytes]:
    for row in harness.journal.replay(0):
        yield from (key for key, record in row.changes if key.startswith(HIDDEN) and record)


@pytest.mark.parametrize("within", [AUTOCOMMIT, SHARED, "t"])
def test_what_is_hidden_is_never_shown_and_never_deleted(within: Within) -> None:
    harness = OwnerHarness()
    if within is not AUTOCOMMIT:
        harness.ask(Open("t") if within == "t" else Begin(SHARED))
    write = batch(Increment(b"n", 1), within=within, once=ONCE)
    harness.ask(write)
    for reverse in (True, False):
        for end in (None, b"\xff\xff"):
            page = harness.ask(Range(end=end, limit=1, reverse=reverse, within=within)).result
            assert ([key for key, _ in page.items], page.more) == ([b"n"], False)
        assert harness.ask(Range(HIDDEN, None, 9, reverse, within)).result.items == []
    inside = harness.ask(batch(Range(), Range(reverse=True), within=within)).result.results
    assert all(isinstance(page, Page) and len(page.items) == 1 for page in inside)
    for start in (b"", HIDDEN):
        for end in (None, b"\xff\xff"):
            harness.ask(DeleteRange(start, end, within))
            harness.ask(batch(DeleteRange(start, end), within=within))
    assert harness.ask(write).result.results == [1]
    assert data(harness, within) == {}
    if within is not AUTOCOMMIT:
        harness.ask(Commit(within))
    assert list(hidden(harness)) == [HIDDEN + ONCE.key]
