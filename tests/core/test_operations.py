"""Writes with conditions, increments, ranges deleted; and what becomes of damaged records."""

from collections.abc import Iterator
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
    Message,
    Open,
    Precondition,
    Range,
    Rollback,
    Set,
    Within,
    Written,
)
from kvactor.core.operations import INTEGERS
from kvactor.core.records import MISSING, NEVER, Missing, decode, decode_revision, value_of
from kvactor.errors import (
    ChecksFailed,
    KeyNotFound,
    NotAnInteger,
    PreconditionFailed,
    RangeTooLarge,
    RecordDamaged,
    TransactionConflict,
)
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal
from tests.core.builders import (
    ABSENT,
    ONCE,
    PRESENT,
    add,
    batch,
    catch_up,
    data,
    harness_with,
    held_with,
    put,
)
from tests.core.harness import HeldTree, OwnerHarness, RecordingReply

# -- conditions --


@pytest.mark.parametrize(
    ("expected", "missing", "there"),
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
def test_a_write_is_done_only_if_the_key_is_what_is_expected(
    expected: Precondition, missing: bool, there: bool
) -> None:
    for message in (put(b"a", b"new", expected=expected), Delete(b"a", expected=expected)):
        harness = harness_with(b"a")
        reply: RecordingReply[Any] = harness.ask(message)
        assert reply.revision == (2 if there else 1)
        if there:
            assert reply.result == Written(2, False)
        else:
            assert isinstance(reply.error, PreconditionFailed)
            assert data(harness) == {b"a": b"1"}
    harness = harness_with(b"other")
    reply = harness.ask(put(b"a", expected=expected))
    if missing:
        assert reply.result == Written(2, True)
    else:
        assert isinstance(reply.error, PreconditionFailed)
    deleted = harness_with(b"other").ask(Delete(b"a", expected=expected))
    assert isinstance(deleted.error, KeyNotFound if missing else PreconditionFailed)


def test_an_expired_key_is_absent_and_the_write_makes_a_new_one() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    for expected in (PRESENT, (1,)):
        assert isinstance(harness.ask(put(b"a", expected=expected)).error, PreconditionFailed)
    assert harness.ask(put(b"a", expected=ABSENT)).result == Written(2, True)
    assert decode(harness.ask(Get(b"a")).result).created == 2


def test_a_write_tells_whether_the_key_is_new() -> None:
    harness = OwnerHarness()
    assert [harness.ask(put(b"a")).result for _ in range(2)] == [Written(1, True), Written(2, False)]
    assert harness.ask(Delete(b"a")).result == Written(3, False)
    assert harness.ask(put(b"a", ttl=10)).result == Written(4, True)
    harness.now += 10
    assert harness.ask(put(b"a")).result == Written(5, True)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_condition_is_decided_on_what_is_staged_and_told_with_that_flush(sealed: bool) -> None:
    harness, journal = held_with(b"busy", b"a")
    if not sealed:
        # The disk is at work on something else, so what follows stays staged.
        harness.ask(put(b"busy"))
    first = harness.ask(put(b"a", b"2", expected=(2,)))
    refused: list[RecordingReply[Any]] = [
        harness.ask(put(b"a", b"3", expected=(2,))),
        harness.ask(Delete(b"a", expected=(2,))),
        harness.ask(put(b"a", expected=ABSENT)),
        harness.ask(batch(checks=[Check(b"a", (2,))])),
    ]
    elsewhere = harness.ask(put(b"b", expected=PRESENT))
    assert isinstance(elsewhere.error, PreconditionFailed)
    assert not any(reply.answered for reply in (first, *refused))
    journal.release()
    harness.settle()
    assert first.answered is sealed
    assert all(reply.answered is sealed for reply in refused)
    catch_up(harness, journal)
    assert first.result.revision == 3 + (not sealed)
    assert {type(reply.error) for reply in refused} == {PreconditionFailed, ChecksFailed}
    assert {reply.revision for reply in refused} == {first.result.revision}
    assert data(harness)[b"a"] == b"2"


def test_of_two_conditional_writes_in_one_drain_one_is_done() -> None:
    harness, journal = held_with()
    replies: list[RecordingReply[Any]] = [RecordingReply(), RecordingReply()]
    writes = [put(b"a", value, expected=ABSENT) for value in (b"first", b"second")]
    harness.owner.drain(harness.now, list(zip(writes, replies, strict=True)))
    harness.settle()
    assert not any(reply.answered for reply in replies)
    catch_up(harness, journal)
    assert replies[0].result == Written(1, True)
    assert isinstance(replies[1].error, PreconditionFailed)
    assert data(harness) == {b"a": b"first"}


def test_a_condition_in_a_transaction_sees_its_own_writes_and_counts_as_a_read() -> None:
    harness = harness_with(b"a")
    for within in ("t", "u"):
        harness.ask(Open(within))
    assert isinstance(harness.ask(put(b"a", within="t", expected=ABSENT)).error, PreconditionFailed)
    assert harness.ask(put(b"a", b"t", "t", expected=(1,))).result == Written(0, False)
    # A draft's revision is 0.
    assert isinstance(harness.ask(put(b"a", within="t", expected=(1,))).error, PreconditionFailed)
    assert harness.ask(put(b"a", b"tt", "t", expected=(0,))).error is None
    assert harness.ask(Delete(b"a", "t", expected=PRESENT)).error is None
    assert harness.ask(put(b"a", b"u", "u")).error is None
    assert harness.ask(put(b"b", b"u", "u", expected=ABSENT)).result == Written(0, True)
    assert data(harness) == {b"a": b"1"}
    assert harness.ask(put(b"a")).error is None
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)
    harness.ask(put(b"b"))
    assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)


@pytest.mark.parametrize("within", [SHARED, "t"])
def test_a_key_that_a_transaction_deleted_is_not_found_there(within: Within) -> None:
    harness = harness_with(b"a")
    harness.ask(Open("t") if within == "t" else Begin(SHARED))
    assert harness.ask(Delete(b"a", within)).result == Written(0, False)
    assert isinstance(harness.ask(Delete(b"a", within)).error, KeyNotFound)
    assert data(harness) == {b"a": b"1"}


def test_a_failed_condition_is_a_read_too() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    assert isinstance(harness.ask(put(b"a", within="t", expected=PRESENT)).error, PreconditionFailed)
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_condition_in_the_shared_transaction_reads_through_it() -> None:
    harness = harness_with(b"a")
    harness.ask(Begin(SHARED))
    assert harness.ask(put(b"a", b"s", SHARED, expected=PRESENT)).result == Written(0, False)
    assert harness.ask(Delete(b"a", SHARED, expected=(0,))).result == Written(0, False)
    assert isinstance(harness.ask(Delete(b"a", SHARED, expected=ABSENT)).error, KeyNotFound)
    assert harness.ask(put(b"b", b"s", SHARED, expected=ABSENT)).error is None
    assert data(harness) == {b"a": b"1"}
    assert harness.ask(Commit(SHARED)).revision == 2
    assert data(harness) == {b"b": b"s"}


# -- increments --
def test_an_increment_begins_at_zero_and_leaves_json() -> None:
    harness = OwnerHarness()
    assert add(harness, b"n", 5).result == BatchResponse(1, [5])
    assert add(harness, b"n", -7).result == BatchResponse(2, [-2])
    assert add(harness, b"n", 0).result == BatchResponse(3, [-2])
    record = decode(harness.ask(Get(b"n")).result)
    assert (record.value, record.content_type, record.created) == (b"-2", "application/json", 1)


def test_an_increment_keeps_the_time_at_which_a_key_ends_and_begins_anew_after_it() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"n", b" 41 ", ttl=10))
    end = harness.now + 10
    harness.now += 9
    assert add(harness, b"n", 1).result.results == [42]
    assert decode(harness.ask(Get(b"n")).result).expires_at == end
    harness.now += 1
    assert add(harness, b"n", 1).result.results == [1]
    record = decode(harness.ask(Get(b"n")).result)
    assert (record.expires_at, record.created) == (NEVER, 3)


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"1.0", b"1e3", b'"1"', b"null", b"true", b"[1]", b"\xff", b"01", b"1 1", b"9" * 5000],
)
def test_what_is_no_integer_is_not_incremented(value: bytes) -> None:
    harness = OwnerHarness()
    harness.ask(put(b"n", value))
    error = add(harness, b"n", 1).error
    assert isinstance(error, NotAnInteger)
    assert error.details == {"operation": 0}
    assert data(harness) == {b"n": value}


def test_a_sum_is_within_64_bits() -> None:
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
    # What was beyond may come back.
    harness.ask(put(b"n", b"%d" % (top + 1)))
    assert add(harness, b"n", -1).result.results == [top]


def test_increments_that_are_staged_one_on_another_lose_nothing() -> None:
    harness, journal = held_with()
    replies = [harness.send(batch(Increment(b"n", 1), Increment(b"n", 1))) for _ in range(5)]
    assert not any(reply.answered for reply in replies)
    harness.settle()
    catch_up(harness, journal)
    assert [reply.result for reply in replies] == [
        BatchResponse(n, [2 * n - 1, 2 * n]) for n in range(1, 6)
    ]


def test_an_own_key_that_has_expired_counts_from_zero() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"n", b"10"))
    harness.ask(Open("t"))
    harness.ask(put(b"n", b"5", "t", ttl=10))
    assert add(harness, b"n", 1, "t").result.results == [6]
    harness.now += 10
    assert add(harness, b"n", 1, "t").result.results == [1]


# -- ranges deleted --


def test_a_range_is_deleted_in_one_revision_as_far_as_it_goes() -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal)
    for key in (b"a", b"b", b"ba", b"c"):
        harness.ask(put(key))
    harness.ask(put(b"bb", ttl=10))
    harness.now += 10
    reply = harness.ask(DeleteRange(b"b", b"c"))
    assert (reply.revision, reply.result) == (6, BatchResponse(6, [2]))
    assert decode_revision(6, journal.rows[6]).changes == ((b"b", None), (b"ba", None))
    assert data(harness) == {b"a": b"1", b"c": b"1"}
    assert harness.ask(DeleteRange(b"c", b"a")).result == BatchResponse(0, [0])
    assert harness.ask(DeleteRange(b"", None)).result == BatchResponse(7, [2])


def test_a_range_with_too_many_keys_is_not_deleted_at_all() -> None:
    harness = harness_with(b"a", b"b", b"c", settings=Settings(max_batch_size=2))
    error = harness.ask(DeleteRange(b"", None)).error
    assert isinstance(error, RangeTooLarge)
    assert error.details == {"limit": 2}
    assert len(data(harness)) == 3
    assert harness.ask(DeleteRange(b"b", None)).result == BatchResponse(4, [2])


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("how", ["batch", "shared"])
def test_a_deletion_that_another_one_has_made_needless_waits_for_that(how: str, sealed: bool) -> None:
    harness, journal = held_with(b"k")
    last: Message[Any] = batch(put(b"k"), Delete(b"k"))
    if how == "shared":
        harness.ask(Begin(SHARED))
        harness.ask(Delete(b"k", SHARED))
        last = Commit(SHARED)
    if not sealed:
        harness.ask(put(b"other"))
    harness.ask(Delete(b"k"))
    needless = harness.ask(last)
    # If it were told now, and the power cut, the key would be back.
    assert not needless.answered
    catch_up(harness, journal)
    assert needless.revision == (2 if sealed else 3)


def test_how_large_the_values_are_does_not_matter_to_a_range_deleted() -> None:
    harness = OwnerHarness(settings=Settings(max_body_size=100))
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key, b"v" * 200))
    assert harness.ask(DeleteRange(b"", None)).result == BatchResponse(4, [3])


def test_a_range_deleted_rests_on_what_is_staged_in_it() -> None:
    harness, journal = held_with(b"a")
    harness.ask(Delete(b"a"))
    nothing = harness.ask(DeleteRange(b"", None))
    elsewhere = harness.ask(DeleteRange(b"b", None))
    assert [nothing.answered, elsewhere.answered] == [False, True]
    catch_up(harness, journal)
    assert (nothing.revision, nothing.result) == (2, BatchResponse(0, [0]))


@pytest.mark.parametrize("within", [SHARED, "t"])
def test_a_range_deleted_in_a_transaction_is_tombstones_of_its_topmost_level(within: Within) -> None:
    harness = harness_with(b"a", b"b")
    harness.ask(Open("t") if within == "t" else Begin(SHARED))
    harness.ask(put(b"c", b"1", within))
    harness.ask(Begin(within))
    harness.ask(Delete(b"a", within))
    assert harness.ask(DeleteRange(b"", None, within)).result == BatchResponse(0, [2])
    assert data(harness, within) == {}
    assert set(data(harness)) == {b"a", b"b"}
    harness.ask(Rollback(within))
    assert set(data(harness, within)) == {b"a", b"b", b"c"}
    assert harness.ask(DeleteRange(b"", None, within)).result == BatchResponse(0, [3])
    harness.ask(Commit(within))
    assert data(harness) == {}
    assert harness.owner.revision == 3


@pytest.mark.parametrize(
    "phantom", [put(b"b"), put(b"a", b"2"), Delete(b"a"), batch(Increment(b"bb", 1))], ids=str
)
def test_whatever_happens_in_a_range_deleted_dooms_the_transaction(phantom: Message[Any]) -> None:
    harness = harness_with(b"a", b"z")
    for within, end in (("t", b"c"), ("u", b"a")):
        harness.ask(Open(within))
        harness.ask(DeleteRange(b"", end, within))
    harness.ask(put(b"c"))
    harness.ask(phantom)
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)
    assert harness.ask(Commit("u")).error is None


def test_a_transaction_that_deleted_a_record_conflicts_once_that_has_expired() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.ask(Open("t"))
    assert harness.ask(DeleteRange(b"", None, "t")).result.results == [1]
    harness.now += 10
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


# -- damaged records --


class DamagedTree(HeldTree):
    """A tree in which `bad` fails its checksum."""

    def get(self, key: bytes) -> bytes | Missing:
        if key == b"bad" and super().get(key) is not MISSING:
            raise RecordDamaged("bad")
        return super().get(key)

    def range(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        for key, record in super().range(start, end, reverse):
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
    put(b"bad", expected=PRESENT),
    put(b"bad", expected=(2,)),
    Delete(b"bad", expected=PRESENT),
    batch(put(b"a", b"2"), checks=[Check(b"bad", ABSENT)]),
    batch(put(b"a", b"2"), Get(b"bad")),
    batch(put(b"a", b"2"), Increment(b"bad", 1)),
    batch(put(b"a", b"2"), Range()),
    DeleteRange(b"", None),
]


@pytest.mark.parametrize("message", DECIDING, ids=str)
def test_nothing_is_decided_on_a_damaged_record(damaged: OwnerHarness, message: Message[Any]) -> None:
    reply = damaged.ask(message)
    assert type(reply.error) is RecordDamaged
    assert damaged.owner.revision == 2
    assert value_of(damaged.ask(Get(b"a")).result) == b"1"


REPLACING: list[tuple[Set | Delete | Batch, bytes | None]] = [
    (put(b"bad", b"new"), b"new"),
    (Delete(b"bad"), None),
    (batch(put(b"bad", b"new")), b"new"),
    (batch(Delete(b"bad")), None),
]


@pytest.mark.parametrize("once", [None, ONCE])
@pytest.mark.parametrize("within", [AUTOCOMMIT, SHARED, "t"])
@pytest.mark.parametrize(("message", "value"), REPLACING, ids=str)
def test_a_damaged_record_can_be_replaced_and_deleted_wherever_one_speaks(
    damaged: OwnerHarness,
    once: IdempotencyKey | None,
    within: Within,
    message: Message[Any],
    value: bytes | None,
) -> None:
    damaged.ask(Open("t") if within == "t" else Begin(SHARED))
    reply: RecordingReply[Any] = damaged.ask(msgspec.structs.replace(message, within=within, once=once))
    assert reply.error is None
    if within is not AUTOCOMMIT:
        assert damaged.ask(Commit(within)).error is None
    (revision,) = damaged.journal.replay(2)
    written = dict(revision.changes)[b"bad"]
    assert (None if written is None else value_of(written)) == value


def test_that_a_record_was_damaged_is_read_too(damaged: OwnerHarness) -> None:
    for within in ("t", "u"):
        damaged.ask(Open(within))
    assert isinstance(damaged.ask(Get(b"bad", "t")).error, RecordDamaged)
    assert damaged.ask(Delete(b"bad", "u")).result == Written(0, False)
    damaged.ask(Delete(b"bad"))
    for within in ("t", "u"):
        assert isinstance(damaged.ask(Commit(within)).error, TransactionConflict)
