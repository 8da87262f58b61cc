"""Writes under an idempotency key are done once; what is kept for it, nobody sees."""

from collections.abc import Iterator
from typing import Any

import pytest

from kvactor.core.messages import (
    OUTSIDE,
    SHARED,
    BatchResult,
    Begin,
    Check,
    Commit,
    Delete,
    DeleteRange,
    Get,
    Increment,
    Message,
    Once,
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
    desk_with,
    held_with,
    put,
    shown,
)
from tests.core.harness import Desk, Said

WRITES: list[tuple[Message[Any], Any]] = [
    (put(b"a", b"2", once=ONCE), Written(3, False)),
    (put(b"new", once=ONCE), Written(3, True)),
    (put(b"a", once=ONCE, expected=(1,)), Written(3, False)),
    (put(b"new", once=ONCE, expected=ABSENT), Written(3, True)),
    (Delete(b"a", once=ONCE), Written(3, False)),
    (Delete(b"a", once=ONCE, expected=(1,)), Written(3, False)),
    (DeleteRange(b"", None, once=ONCE), BatchResult(3, [2])),
    (
        batch(Increment(b"n", INTEGERS[0]), put(b"a"), Delete(b"x"), Delete(b"b"), once=ONCE),
        BatchResult(3, [INTEGERS[0], None, False, True]),
    ),
    (batch(Delete(b"x"), once=ONCE), BatchResult(3, [False])),
]


@pytest.mark.parametrize(("write", "result"), WRITES, ids=str)
def test_a_write_that_comes_again_under_its_key_is_not_done_again_and_gets_the_same_answer(
    write: Message[Any], result: object
) -> None:
    journal = MemoryJournal()
    desk = Desk(journal)
    desk.ask(put(b"a"))
    desk.ask(put(b"b"))
    assert desk.ask(write).result == result
    desk.ask(put(b"other"))
    kept = data(desk)
    for _ in range(2):
        again = desk.ask(write)
        assert (again.revision, again.result) == (4, result)
    assert data(desk) == kept
    assert max(journal.rows) == 4
    # Only what is not hidden is anyone's business.
    assert HIDDEN + ONCE.key in dict(decode_revision(3, journal.rows[3]).changes)


def test_records_and_pages_are_kept_too() -> None:
    desk = desk_with(b"a", b"b")
    one = batch(Get(b"a"), Get(b"x"), Range(limit=1), once=ONCE)
    first = desk.ask(one).result
    desk.ask(put(b"a", b"2"))
    assert desk.ask(one).result == first
    assert shown(first.results) == [b"1", None, [(b"a", b"1")]]


def test_two_at_once_under_one_key_are_done_once_and_wait_for_the_same_flush() -> None:
    desk, journal = held_with()
    saids: list[Said[Any]] = [Said(), Said(), Said()]
    one = batch(Increment(b"n", 1), once=ONCE)
    other = batch(Increment(b"n", 2), once=Once(ONCE.key, b"other"))
    desk.owner.drain(desk.now, list(zip([one, one, other], saids, strict=True)))
    late = desk.ask(one)
    assert not any(said.answered for said in (*saids, late))
    journal.release()
    desk.settle()
    assert [said.result for said in (*saids[:2], late)] == [BatchResult(1, [1])] * 3
    assert isinstance(saids[2].error, IdempotencyKeyReused)
    assert data(desk) == {b"n": b"1"}
    assert not journal.pending


@pytest.mark.parametrize("memtable", [1, 1 << 20], ids=["folded", "not folded"])
def test_an_idempotency_key_outlives_a_restart(memtable: int) -> None:
    journal, tree = MemoryJournal(), MemoryTree()
    settings = Settings(memtable_size=memtable)
    desk = Desk(journal, tree, settings)
    one = batch(Increment(b"n", 1), Get(b"n"), once=ONCE)
    first = desk.ask(one).result
    assert (tree.applied == 1) is (memtable == 1)
    again = Desk(journal, tree, settings)
    assert again.ask(one).result == first
    assert again.owner.revision == 1
    again.now += DAY
    assert again.ask(one).result.results[0] == 2


def test_another_request_under_the_same_key_is_refused() -> None:
    desk = Desk()
    desk.ask(put(b"a", once=ONCE))
    other = Once(ONCE.key, b"other")
    for message in (
        put(b"a", once=other),
        Delete(b"a", once=other),
        DeleteRange(b"", None, once=other),
        batch(put(b"b"), once=other),
    ):
        said: Said[Any] = desk.ask(message)
        assert isinstance(said.error, IdempotencyKeyReused)
    assert data(desk) == {b"a": b"1"}
    assert desk.ask(put(b"b", once=Once(b"another key", ONCE.fingerprint))).result.revision == 2


def test_a_write_that_failed_is_not_kept() -> None:
    desk = Desk()
    failing: list[tuple[Message[Any], type[KvactorError]]] = [
        (put(b"a", once=ONCE, expected=PRESENT), PreconditionFailed),
        (Delete(b"a", once=ONCE), KeyNotFound),
        (batch(put(b"b"), Get(b""), once=ONCE), InvalidKey),
        (batch(checks=[Check(b"a", PRESENT)], once=ONCE), ChecksFailed),
    ]
    for message, error in failing:
        assert isinstance(desk.ask(message).error, error)
    assert desk.owner.revision == 0
    desk.ask(put(b"a"))
    assert desk.ask(failing[0][0]).result == Written(2, False)


def test_an_idempotency_key_is_forgotten_after_its_window_and_swept() -> None:
    desk = Desk(settings=Settings(idempotency_window=2.5))
    write = batch(Increment(b"n", 1), once=ONCE)
    assert desk.ask(write).result == BatchResult(1, [1])
    desk.now += 2499
    desk.tell(TICK)
    assert desk.ask(write).result == BatchResult(1, [1])
    desk.now += 1
    assert desk.ask(write).result == BatchResult(2, [2])
    assert desk.ask(Status()).result.keys == 2
    desk.now += 2500
    desk.tell(TICK)
    assert desk.ask(Status()).result.keys == 1
    assert desk.owner.revision == 3
    assert desk.ask(put(b"x", once=Once(ONCE.key, b"other"))).error is None


@pytest.mark.parametrize("within", [SHARED, "t"])
def test_an_idempotency_key_in_a_transaction_is_kept_with_it_and_forgotten_with_it(
    within: Within,
) -> None:
    desk = Desk()
    desk.ask(Open("t") if within == "t" else Begin(SHARED))
    desk.ask(Begin(within))
    write = batch(Increment(b"n", 1), within=within, once=ONCE)
    assert [desk.ask(write).result for _ in range(2)] == [BatchResult(0, [1])] * 2
    desk.ask(Rollback(within))
    assert data(desk, within) == {}
    assert [desk.ask(write).result for _ in range(2)] == [BatchResult(0, [1])] * 2
    assert data(desk, within) == {b"n": b"1"}
    desk.ask(Commit(within))
    assert desk.owner.revision == 1
    # From outside, the same is told, with the revision that came of it.
    assert desk.ask(batch(Increment(b"n", 1), once=ONCE)).result == BatchResult(1, [1])
    assert data(desk) == {b"n": b"1"}


def test_of_two_transactions_with_the_same_idempotency_key_one_goes_through() -> None:
    desk = Desk()
    for within in ("t", "u"):
        desk.ask(Open(within))
        desk.ask(batch(put(within.encode()), within=within, once=ONCE))
    assert desk.ask(Commit("t")).error is None
    assert isinstance(desk.ask(Commit("u")).error, TransactionConflict)
    assert data(desk) == {b"t": b"1"}


def test_a_blind_write_is_blind_under_an_idempotency_key_too() -> None:
    desk = desk_with(b"a")
    desk.ask(Open("t"))
    assert desk.ask(put(b"b", b"t", "t", once=ONCE)).result == Written(0, False)
    desk.ask(put(b"b"))
    assert desk.ask(Commit("t")).error is None
    assert data(desk)[b"b"] == b"t"


def hidden(desk: Desk) -> Iterator[bytes]:
    for row in desk.journal.replay(0):
        yield from (key for key, record in row.changes if key.startswith(HIDDEN) and record)


@pytest.mark.parametrize("within", [OUTSIDE, SHARED, "t"])
def test_what_is_hidden_is_never_shown_and_never_deleted(within: Within) -> None:
    desk = Desk()
    if within is not OUTSIDE:
        desk.ask(Open("t") if within == "t" else Begin(SHARED))
    write = batch(Increment(b"n", 1), within=within, once=ONCE)
    desk.ask(write)
    for reverse in (True, False):
        for end in (None, b"\xff\xff"):
            page = desk.ask(Range(end=end, limit=1, reverse=reverse, within=within)).result
            assert ([key for key, _ in page.items], page.more) == ([b"n"], False)
        assert desk.ask(Range(HIDDEN, None, 9, reverse, within)).result.items == []
    inside = desk.ask(batch(Range(), Range(reverse=True), within=within)).result.results
    assert all(isinstance(page, Page) and len(page.items) == 1 for page in inside)
    for start in (b"", HIDDEN):
        for end in (None, b"\xff\xff"):
            desk.ask(DeleteRange(start, end, within))
            desk.ask(batch(DeleteRange(start, end), within=within))
    assert desk.ask(write).result.results == [1]
    assert data(desk, within) == {}
    if within is not OUTSIDE:
        desk.ask(Commit(within))
    assert list(hidden(desk)) == [HIDDEN + ONCE.key]
