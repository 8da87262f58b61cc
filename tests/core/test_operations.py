"""Preconditions, increments, deleted ranges, and damaged records."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

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
    Precondition,
    Rollback,
    TransactionRef,
)
from kvactor.core.operations import INTEGERS, Delete, Get, Increment, Range
from kvactor.core.records import MISSING, NEVER, Missing, decode_revision, value_of
from kvactor.core.work import Work
from kvactor.errors import (
    ChecksFailed,
    KeyNotFound,
    NotAnInteger,
    RangeTooLarge,
    RecordDamaged,
    TransactionConflict,
)
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal
from tests.core.builders import (
    ABSENT,
    IDEMPOTENCY_KEY,
    PRESENT,
    add,
    batch,
    catch_up,
    data,
    delete,
    delete_range,
    get,
    harness_with,
    held_with,
    put,
    record_of,
    value,
    written,
)
from tests.core.harness import HeldTree, OwnerHarness, RecordingReply

# -- preconditions --


@pytest.mark.parametrize(
    ("precondition", "missing", "there"),
    [
        (ABSENT, True, False),
        (PRESENT, False, True),
        ((1,), False, True),
        ((2,), False, False),
        ((7, 1), False, True),
        ((), False, False),
        ((0,), False, False),
    ],
)
def test_a_conditional_write_is_done_only_if_its_precondition_holds(
    precondition: Precondition, missing: bool, there: bool
) -> None:
    for message, result in (
        (put(b"a", b"new", precondition=precondition), False),
        (delete(b"a", precondition=precondition), True),
    ):
        harness = harness_with(b"a")
        reply: RecordingReply[Any] = harness.ask(message)
        assert reply.revision == (2 if there else 1)
        if there:
            assert written(reply) == (2, result)
        else:
            assert isinstance(reply.error, ChecksFailed)
            assert data(harness) == {b"a": b"1"}
    harness = harness_with(b"other")
    reply = harness.ask(put(b"a", precondition=precondition))
    if missing:
        assert written(reply) == (2, True)
    else:
        assert isinstance(reply.error, ChecksFailed)
    deleted = harness_with(b"other").ask(delete(b"a", precondition=precondition))
    assert isinstance(deleted.error, KeyNotFound if missing else ChecksFailed)


def test_an_expired_key_is_absent_for_a_precondition_and_a_write_makes_a_new_one() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    for precondition in (PRESENT, (1,)):
        assert isinstance(harness.ask(put(b"a", precondition=precondition)).error, ChecksFailed)
    assert written(harness.ask(put(b"a", precondition=ABSENT))) == (2, True)
    assert record_of(harness, b"a").created == 2


def test_a_write_says_whether_the_key_is_new() -> None:
    harness = OwnerHarness()
    assert [written(harness.ask(put(b"a"))) for _ in range(2)] == [(1, True), (2, False)]
    assert written(harness.ask(delete(b"a"))) == (3, True)
    assert written(harness.ask(put(b"a", ttl=10))) == (4, True)
    harness.now += 10
    assert written(harness.ask(put(b"a"))) == (5, True)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_precondition_is_decided_on_staged_writes_and_answered_with_their_flush(sealed: bool) -> None:
    harness, journal = held_with(b"busy", b"a")
    if not sealed:
        # The disk is at work on something else, so what follows stays staged.
        harness.ask(put(b"busy"))
    first = harness.ask(put(b"a", b"2", precondition=(2,)))
    refused: list[RecordingReply[Any]] = [
        harness.ask(put(b"a", b"3", precondition=(2,))),
        harness.ask(delete(b"a", precondition=(2,))),
        harness.ask(put(b"a", precondition=ABSENT)),
        harness.ask(batch(checks=[Check(b"a", (2,))])),
    ]
    elsewhere = harness.ask(put(b"b", precondition=PRESENT))
    assert isinstance(elsewhere.error, ChecksFailed)
    assert not any(reply.answered for reply in (first, *refused))
    journal.release()
    harness.settle()
    assert first.answered is sealed
    assert all(reply.answered is sealed for reply in refused)
    catch_up(harness, journal)
    assert first.result.revision == 3 + (not sealed)
    assert {type(reply.error) for reply in refused} == {ChecksFailed}
    assert {reply.revision for reply in refused} == {first.result.revision}
    assert data(harness)[b"a"] == b"2"


def test_only_one_of_two_conditional_writes_in_one_drain_is_done() -> None:
    harness, journal = held_with()
    replies: list[RecordingReply[Any]] = [RecordingReply(), RecordingReply()]
    writes = [put(b"a", value, precondition=ABSENT) for value in (b"first", b"second")]
    harness.owner.drain(harness.now, [(*one, UNCOUNTED) for one in zip(writes, replies, strict=True)])
    harness.settle()
    assert not any(reply.answered for reply in replies)
    catch_up(harness, journal)
    assert written(replies[0]) == (1, True)
    assert isinstance(replies[1].error, ChecksFailed)
    assert data(harness) == {b"a": b"first"}


def test_a_precondition_in_a_transaction_sees_its_own_writes_and_is_a_read() -> None:
    harness = harness_with(b"a")
    for transaction in ("t", "u"):
        harness.ask(Open(transaction))
    assert isinstance(harness.ask(put(b"a", transaction="t", precondition=ABSENT)).error, ChecksFailed)
    assert written(harness.ask(put(b"a", b"t", "t", precondition=(1,)))) == (0, False)
    # It has no revision, but the number of the draft.
    for others in ((1,), (-2,)):
        refused = harness.ask(put(b"a", transaction="t", precondition=others))
        assert isinstance(refused.error, ChecksFailed)
    assert harness.ask(put(b"a", b"tt", "t", precondition=(-1,))).error is None
    assert isinstance(harness.ask(put(b"a", transaction="t", precondition=(-1,))).error, ChecksFailed)
    assert harness.ask(put(b"a", b"tt", "t", precondition=(0,))).error is None
    assert harness.ask(delete(b"a", "t", precondition=PRESENT)).error is None
    assert harness.ask(put(b"a", b"u", "u")).error is None
    assert written(harness.ask(put(b"b", b"u", "u", precondition=ABSENT))) == (0, True)
    assert data(harness) == {b"a": b"1"}
    assert harness.ask(put(b"a")).error is None
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)
    harness.ask(put(b"b"))
    assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)


@pytest.mark.parametrize("transaction", [SHARED, "t"])
def test_a_key_that_a_transaction_deleted_is_not_found_there(transaction: TransactionRef) -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
    assert harness.ask(delete(b"a", transaction)).result is True
    assert isinstance(harness.ask(delete(b"a", transaction)).error, KeyNotFound)
    assert data(harness) == {b"a": b"1"}


def test_a_failed_precondition_is_a_read_too() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    assert isinstance(harness.ask(put(b"a", transaction="t", precondition=PRESENT)).error, ChecksFailed)
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_precondition_in_the_shared_transaction_reads_through_it() -> None:
    harness = harness_with(b"a")
    harness.ask(Begin(SHARED))
    assert written(harness.ask(put(b"a", b"s", SHARED, precondition=PRESENT))) == (0, False)
    assert written(harness.ask(delete(b"a", SHARED, precondition=(0,)))) == (0, True)
    assert isinstance(harness.ask(delete(b"a", SHARED, precondition=ABSENT)).error, KeyNotFound)
    assert harness.ask(put(b"b", b"s", SHARED, precondition=ABSENT)).error is None
    assert data(harness) == {b"a": b"1"}
    assert harness.ask(Commit(SHARED)).revision == 2
    assert data(harness) == {b"b": b"s"}


# -- increments --


def test_an_increment_of_a_missing_key_begins_at_zero_and_leaves_json() -> None:
    harness = OwnerHarness()
    assert add(harness, b"n", 5).result == BatchResponse(1, [5])
    assert add(harness, b"n", -7).result == BatchResponse(2, [-2])
    assert add(harness, b"n", 0).result == BatchResponse(3, [-2])
    record = record_of(harness, b"n")
    assert (record.value, record.content_type, record.created) == (b"-2", "application/json", 1)


def test_an_increment_keeps_the_expiry_of_a_key_and_begins_anew_after_it() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"n", b" 41 ", ttl=10))
    end = harness.now + 10
    harness.now += 9
    assert add(harness, b"n", 1).result.results == [42]
    assert record_of(harness, b"n").expires_at == end
    harness.now += 1
    assert add(harness, b"n", 1).result.results == [1]
    record = record_of(harness, b"n")
    assert (record.expires_at, record.created) == (NEVER, 3)


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"1.0", b"1e3", b'"1"', b"null", b"true", b"[1]", b"\xff", b"01", b"1 1", b"9" * 5000],
)
def test_an_increment_of_a_value_that_is_no_integer_is_refused(value: bytes) -> None:
    harness = OwnerHarness()
    harness.ask(put(b"n", value))
    error = add(harness, b"n", 1).error
    assert isinstance(error, NotAnInteger)
    assert error.details == {"operation": 0}
    assert data(harness) == {b"n": value}


def test_an_increment_beyond_64_bits_is_refused() -> None:
    harness = OwnerHarness()
    top, bottom = INTEGERS[-1], INTEGERS[0]
    assert (top, bottom) == (9223372036854775807, -9223372036854775808)
    for limit, step in ((top, 1), (bottom, -1)):
        harness.ask(put(b"n", b"%d" % (limit - step)))
        assert add(harness, b"n", step).result.results == [limit]
        assert isinstance(add(harness, b"n", step).error, NotAnInteger)
        assert data(harness) == {b"n": b"%d" % limit}
        assert add(harness, b"n", -step).result.results == [limit - step]
        assert isinstance(add(harness, b"new", limit + step).error, NotAnInteger)
    # A value that is beyond already may come back.
    harness.ask(put(b"n", b"%d" % (top + 1)))
    assert add(harness, b"n", -1).result.results == [top]


def test_increments_staged_one_on_another_lose_nothing() -> None:
    harness, journal = held_with()
    replies = [harness.send(batch(Increment(b"n", 1), Increment(b"n", 1))) for _ in range(5)]
    assert not any(reply.answered for reply in replies)
    harness.settle()
    catch_up(harness, journal)
    assert [reply.result for reply in replies] == [
        BatchResponse(n, [2 * n - 1, 2 * n]) for n in range(1, 6)
    ]


def test_an_increment_of_an_expired_key_of_the_same_transaction_begins_at_zero() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"n", b"10"))
    harness.ask(Open("t"))
    harness.ask(put(b"n", b"5", "t", ttl=10))
    assert add(harness, b"n", 1, "t").result.results == [6]
    harness.now += 10
    assert add(harness, b"n", 1, "t").result.results == [1]


# -- deleted ranges --


def test_a_deleted_range_is_one_revision_with_the_keys_between_its_bounds() -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal)
    for key in (b"a", b"b", b"ba", b"c"):
        harness.ask(put(key))
    harness.ask(put(b"bb", ttl=10))
    harness.now += 10
    reply = harness.ask(delete_range(b"b", b"c"))
    assert (reply.revision, reply.result) == (6, BatchResponse(6, [2]))
    assert decode_revision(6, journal.rows[6]).changes == ((b"b", None), (b"ba", None))
    assert data(harness) == {b"a": b"1", b"c": b"1"}
    assert harness.ask(delete_range(b"c", b"a")).result == BatchResponse(0, [0])
    assert harness.ask(delete_range(b"", None)).result == BatchResponse(7, [2])


def test_a_range_with_more_keys_than_the_limit_is_not_deleted_at_all() -> None:
    harness = harness_with(b"a", b"b", b"c", settings=Settings(max_batch_size=2))
    error = harness.ask(delete_range(b"", None)).error
    assert isinstance(error, RangeTooLarge)
    assert error.details == {"limit": 2, "operation": 0}
    assert len(data(harness)) == 3
    assert harness.ask(delete_range(b"b", None)).result == BatchResponse(4, [2])


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("how", ["batch", "shared"])
def test_a_deletion_of_a_key_whose_deletion_is_staged_waits_for_that_flush(
    how: str, sealed: bool
) -> None:
    harness, journal = held_with(b"k")
    last: Message[Any] = batch(put(b"k"), Delete(b"k"))
    if how == "shared":
        harness.ask(Begin(SHARED))
        harness.ask(delete(b"k", SHARED))
        last = Commit(SHARED)
    if not sealed:
        harness.ask(put(b"other"))
    harness.ask(delete(b"k"))
    needless = harness.ask(last)
    # If it were answered now, and the power failed, the key would be back.
    assert not needless.answered
    catch_up(harness, journal)
    assert needless.revision == (2 if sealed else 3)


def test_a_range_is_deleted_however_large_its_values_are() -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=100))
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key, b"v" * 200))
    assert harness.ask(delete_range(b"", None)).result == BatchResponse(4, [3])


def test_a_deleted_range_depends_on_the_writes_staged_in_it() -> None:
    harness, journal = held_with(b"a")
    harness.ask(delete(b"a"))
    nothing = harness.ask(delete_range(b"", None))
    elsewhere = harness.ask(delete_range(b"b", None))
    assert [nothing.answered, elsewhere.answered] == [False, True]
    catch_up(harness, journal)
    assert (nothing.revision, nothing.result) == (2, BatchResponse(0, [0]))


@pytest.mark.parametrize("transaction", [SHARED, "t"])
def test_a_range_deleted_in_a_transaction_is_deleted_at_its_topmost_level(
    transaction: TransactionRef,
) -> None:
    harness = harness_with(b"a", b"b")
    harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
    harness.ask(put(b"c", b"1", transaction))
    harness.ask(Begin(transaction))
    harness.ask(delete(b"a", transaction))
    assert harness.ask(delete_range(b"", None, transaction)).result == BatchResponse(0, [2])
    assert data(harness, transaction) == {}
    assert set(data(harness)) == {b"a", b"b"}
    harness.ask(Rollback(transaction))
    assert set(data(harness, transaction)) == {b"a", b"b", b"c"}
    assert harness.ask(delete_range(b"", None, transaction)).result == BatchResponse(0, [3])
    harness.ask(Commit(transaction))
    assert data(harness) == {}
    assert harness.owner.revision == 3


@pytest.mark.parametrize(
    "phantom", [put(b"b"), put(b"a", b"2"), delete(b"a"), batch(Increment(b"bb", 1))], ids=str
)
def test_a_write_in_a_range_that_a_transaction_deleted_conflicts_with_it(phantom: Message[Any]) -> None:
    harness = harness_with(b"a", b"z")
    for transaction, end in (("t", b"c"), ("u", b"a")):
        harness.ask(Open(transaction))
        harness.ask(delete_range(b"", end, transaction))
    harness.ask(put(b"c"))
    harness.ask(phantom)
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)
    assert harness.ask(Commit("u")).error is None


def test_a_transaction_that_deleted_a_record_conflicts_once_that_has_expired() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.ask(Open("t"))
    assert harness.ask(delete_range(b"", None, "t")).result.results == [1]
    harness.now += 10
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


# -- damaged records --


class DamagedTree(HeldTree):
    """A tree in which `bad` fails its checksum."""

    def get(self, key: bytes, work: Work) -> bytes | Missing:
        if key == b"bad" and super().get(key, work) is not MISSING:
            raise RecordDamaged("bad")
        return super().get(key, work)

    def head(self, key: bytes, work: Work) -> bytes | Missing:
        self.get(key, work)
        return super().head(key, work)

    def range(
        self, start: bytes, end: bytes | None, reverse: bool, values: bool, work: Work
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, record in super().range(start, end, reverse, values, work):
            if key == b"bad":
                raise RecordDamaged("bad")
            yield key, record


@pytest.fixture
def damaged() -> OwnerHarness:
    tree = DamagedTree()
    tree.holding = False
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=1))
    harness.ask(put(b"a"))
    harness.ask(put(b"bad"))
    return harness


DECIDING: list[Message[Any]] = [
    put(b"bad", precondition=PRESENT),
    put(b"bad", precondition=(2,)),
    delete(b"bad", precondition=PRESENT),
    batch(put(b"a", b"2"), checks=[Check(b"bad", ABSENT)]),
    batch(put(b"a", b"2"), Get(b"bad")),
    batch(put(b"a", b"2"), Increment(b"bad", 1)),
    batch(put(b"a", b"2"), Range()),
    delete_range(b"", None),
]


@pytest.mark.parametrize("message", DECIDING, ids=str)
def test_a_request_that_is_decided_on_a_damaged_record_is_refused_and_nothing_is_done(
    damaged: OwnerHarness, message: Message[Any]
) -> None:
    reply = damaged.ask(message)
    assert type(reply.error) is RecordDamaged
    assert damaged.owner.revision == 2
    assert value(damaged, b"a") == b"1"


Write = Callable[[TransactionRef, IdempotencyKey | None], Message[Any]]
REPLACING: dict[str, tuple[Write, bytes | None]] = {
    "set": (lambda ref, key: put(b"bad", b"new", ref, idempotency_key=key), b"new"),
    "delete": (lambda ref, key: delete(b"bad", ref, idempotency_key=key), None),
    "set in a batch": (
        lambda ref, key: batch(put(b"bad", b"new"), transaction=ref, idempotency_key=key),
        b"new",
    ),
    "delete in a batch": (
        lambda ref, key: batch(Delete(b"bad"), transaction=ref, idempotency_key=key),
        None,
    ),
}


@pytest.mark.parametrize("idempotency_key", [None, IDEMPOTENCY_KEY], ids=["once", "repeatable"])
@pytest.mark.parametrize("transaction", [AUTOCOMMIT, SHARED, "t"])
@pytest.mark.parametrize("how", REPLACING)
def test_a_damaged_record_can_be_replaced_and_deleted_by_every_kind_of_write(
    damaged: OwnerHarness,
    idempotency_key: IdempotencyKey | None,
    transaction: TransactionRef,
    how: str,
) -> None:
    write, expected = REPLACING[how]
    damaged.ask(Open("t") if transaction == "t" else Begin(SHARED))
    assert damaged.ask(write(transaction, idempotency_key)).error is None
    if transaction is not AUTOCOMMIT:
        assert damaged.ask(Commit(transaction)).error is None
    (revision,) = damaged.journal.replay(2)
    record = dict(revision.changes)[b"bad"]
    assert (None if record is None else value_of(record)) == expected


def test_a_transaction_that_met_a_damaged_record_has_read_it(damaged: OwnerHarness) -> None:
    for transaction in ("t", "u"):
        damaged.ask(Open(transaction))
    assert isinstance(damaged.ask(get(b"bad", "t")).error, RecordDamaged)
    assert damaged.ask(delete(b"bad", "u")).result is True
    damaged.ask(delete(b"bad"))
    for transaction in ("t", "u"):
        assert isinstance(damaged.ask(Commit(transaction)).error, TransactionConflict)
