"""Writes with conditions, increments, ranges deleted; and what becomes of damaged records."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from kvactor.core.messages import (
    OUTSIDE,
    SHARED,
    Batch,
    BatchResult,
    Begin,
    Check,
    Commit,
    Delete,
    DeleteRange,
    Expected,
    Get,
    Increment,
    Message,
    Once,
    Open,
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
    desk_with,
    held_with,
    put,
)
from tests.core.harness import Desk, HeldTree, Said

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
    expected: Expected, missing: bool, there: bool
) -> None:
    for message in (put(b"a", b"new", expected=expected), Delete(b"a", expected=expected)):
        desk = desk_with(b"a")
        said: Said[Any] = desk.ask(message)
        assert said.revision == (2 if there else 1)
        if there:
            assert said.result == Written(2, False)
        else:
            assert isinstance(said.error, PreconditionFailed)
            assert data(desk) == {b"a": b"1"}
    desk = desk_with(b"other")
    said = desk.ask(put(b"a", expected=expected))
    if missing:
        assert said.result == Written(2, True)
    else:
        assert isinstance(said.error, PreconditionFailed)
    deleted = desk_with(b"other").ask(Delete(b"a", expected=expected))
    assert isinstance(deleted.error, KeyNotFound if missing else PreconditionFailed)


def test_an_expired_key_is_absent_and_the_write_makes_a_new_one() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.now += 10
    for expected in (PRESENT, (1,)):
        assert isinstance(desk.ask(put(b"a", expected=expected)).error, PreconditionFailed)
    assert desk.ask(put(b"a", expected=ABSENT)).result == Written(2, True)
    assert decode(desk.ask(Get(b"a")).result).created == 2


def test_a_write_tells_whether_the_key_is_new() -> None:
    desk = Desk()
    assert [desk.ask(put(b"a")).result for _ in range(2)] == [Written(1, True), Written(2, False)]
    assert desk.ask(Delete(b"a")).result == Written(3, False)
    assert desk.ask(put(b"a", ttl=10)).result == Written(4, True)
    desk.now += 10
    assert desk.ask(put(b"a")).result == Written(5, True)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_condition_is_decided_on_what_is_staged_and_told_with_that_flush(sealed: bool) -> None:
    desk, journal = held_with(b"busy", b"a")
    if not sealed:
        # The disk is at work on something else, so what follows stays staged.
        desk.ask(put(b"busy"))
    first = desk.ask(put(b"a", b"2", expected=(2,)))
    refused: list[Said[Any]] = [
        desk.ask(put(b"a", b"3", expected=(2,))),
        desk.ask(Delete(b"a", expected=(2,))),
        desk.ask(put(b"a", expected=ABSENT)),
        desk.ask(batch(checks=[Check(b"a", (2,))])),
    ]
    elsewhere = desk.ask(put(b"b", expected=PRESENT))
    assert isinstance(elsewhere.error, PreconditionFailed)
    assert not any(said.answered for said in (first, *refused))
    journal.release()
    desk.settle()
    assert first.answered is sealed
    assert all(said.answered is sealed for said in refused)
    catch_up(desk, journal)
    assert first.result.revision == 3 + (not sealed)
    assert {type(said.error) for said in refused} == {PreconditionFailed, ChecksFailed}
    assert {said.revision for said in refused} == {first.result.revision}
    assert data(desk)[b"a"] == b"2"


def test_of_two_conditional_writes_in_one_drain_one_is_done() -> None:
    desk, journal = held_with()
    saids: list[Said[Any]] = [Said(), Said()]
    writes = [put(b"a", value, expected=ABSENT) for value in (b"first", b"second")]
    desk.owner.drain(desk.now, list(zip(writes, saids, strict=True)))
    desk.settle()
    assert not any(said.answered for said in saids)
    catch_up(desk, journal)
    assert saids[0].result == Written(1, True)
    assert isinstance(saids[1].error, PreconditionFailed)
    assert data(desk) == {b"a": b"first"}


def test_a_condition_in_a_transaction_sees_its_own_writes_and_counts_as_a_read() -> None:
    desk = desk_with(b"a")
    for within in ("t", "u"):
        desk.ask(Open(within))
    assert isinstance(desk.ask(put(b"a", within="t", expected=ABSENT)).error, PreconditionFailed)
    assert desk.ask(put(b"a", b"t", "t", expected=(1,))).result == Written(0, False)
    # A draft's revision is 0.
    assert isinstance(desk.ask(put(b"a", within="t", expected=(1,))).error, PreconditionFailed)
    assert desk.ask(put(b"a", b"tt", "t", expected=(0,))).error is None
    assert desk.ask(Delete(b"a", "t", expected=PRESENT)).error is None
    assert desk.ask(put(b"a", b"u", "u")).error is None
    assert desk.ask(put(b"b", b"u", "u", expected=ABSENT)).result == Written(0, True)
    assert data(desk) == {b"a": b"1"}
    assert desk.ask(put(b"a")).error is None
    assert isinstance(desk.ask(Commit("t")).error, TransactionConflict)
    desk.ask(put(b"b"))
    assert isinstance(desk.ask(Commit("u")).error, TransactionConflict)


@pytest.mark.parametrize("within", [SHARED, "t"])
def test_a_key_that_a_transaction_deleted_is_not_found_there(within: Within) -> None:
    desk = desk_with(b"a")
    desk.ask(Open("t") if within == "t" else Begin(SHARED))
    assert desk.ask(Delete(b"a", within)).result == Written(0, False)
    assert isinstance(desk.ask(Delete(b"a", within)).error, KeyNotFound)
    assert data(desk) == {b"a": b"1"}


def test_a_failed_condition_is_a_read_too() -> None:
    desk = Desk()
    desk.ask(Open("t"))
    assert isinstance(desk.ask(put(b"a", within="t", expected=PRESENT)).error, PreconditionFailed)
    desk.ask(put(b"a"))
    assert isinstance(desk.ask(Commit("t")).error, TransactionConflict)


def test_a_condition_in_the_shared_transaction_reads_through_it() -> None:
    desk = desk_with(b"a")
    desk.ask(Begin(SHARED))
    assert desk.ask(put(b"a", b"s", SHARED, expected=PRESENT)).result == Written(0, False)
    assert desk.ask(Delete(b"a", SHARED, expected=(0,))).result == Written(0, False)
    assert isinstance(desk.ask(Delete(b"a", SHARED, expected=ABSENT)).error, KeyNotFound)
    assert desk.ask(put(b"b", b"s", SHARED, expected=ABSENT)).error is None
    assert data(desk) == {b"a": b"1"}
    assert desk.ask(Commit(SHARED)).revision == 2
    assert data(desk) == {b"b": b"s"}


# -- increments --
def test_an_increment_begins_at_zero_and_leaves_json() -> None:
    desk = Desk()
    assert add(desk, b"n", 5).result == BatchResult(1, [5])
    assert add(desk, b"n", -7).result == BatchResult(2, [-2])
    assert add(desk, b"n", 0).result == BatchResult(3, [-2])
    record = decode(desk.ask(Get(b"n")).result)
    assert (record.value, record.content_type, record.created) == (b"-2", "application/json", 1)


def test_an_increment_keeps_the_time_at_which_a_key_ends_and_begins_anew_after_it() -> None:
    desk = Desk()
    desk.ask(put(b"n", b" 41 ", ttl=10))
    end = desk.now + 10
    desk.now += 9
    assert add(desk, b"n", 1).result.results == [42]
    assert decode(desk.ask(Get(b"n")).result).expires_at == end
    desk.now += 1
    assert add(desk, b"n", 1).result.results == [1]
    record = decode(desk.ask(Get(b"n")).result)
    assert (record.expires_at, record.created) == (NEVER, 3)


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"1.0", b"1e3", b'"1"', b"null", b"true", b"[1]", b"\xff", b"01", b"1 1", b"9" * 5000],
)
def test_what_is_no_integer_is_not_incremented(value: bytes) -> None:
    desk = Desk()
    desk.ask(put(b"n", value))
    error = add(desk, b"n", 1).error
    assert isinstance(error, NotAnInteger)
    assert error.details == {"operation": 0}
    assert data(desk) == {b"n": value}


def test_a_sum_is_within_64_bits() -> None:
    desk = Desk()
    top, bottom = INTEGERS[-1], INTEGERS[0]
    assert (top, bottom) == (9223372036854775807, -9223372036854775808)
    for limit, step in ((top, 1), (bottom, -1)):
        desk.ask(put(b"n", b"%d" % (limit - step)))
        assert add(desk, b"n", step).result.results == [limit]
        assert isinstance(add(desk, b"n", step).error, NotAnInteger)
        assert data(desk) == {b"n": b"%d" % limit}
        assert add(desk, b"n", -step).result.results == [limit - step]
        assert isinstance(add(desk, b"new", limit + step).error, NotAnInteger)
    # What was beyond may come back.
    desk.ask(put(b"n", b"%d" % (top + 1)))
    assert add(desk, b"n", -1).result.results == [top]


def test_increments_that_are_staged_one_on_another_lose_nothing() -> None:
    desk, journal = held_with()
    saids = [desk.send(batch(Increment(b"n", 1), Increment(b"n", 1))) for _ in range(5)]
    assert not any(said.answered for said in saids)
    desk.settle()
    catch_up(desk, journal)
    assert [said.result for said in saids] == [BatchResult(n, [2 * n - 1, 2 * n]) for n in range(1, 6)]


def test_an_own_key_that_has_expired_counts_from_zero() -> None:
    desk = Desk()
    desk.ask(put(b"n", b"10"))
    desk.ask(Open("t"))
    desk.ask(put(b"n", b"5", "t", ttl=10))
    assert add(desk, b"n", 1, "t").result.results == [6]
    desk.now += 10
    assert add(desk, b"n", 1, "t").result.results == [1]


# -- ranges deleted --


def test_a_range_is_deleted_in_one_revision_as_far_as_it_goes() -> None:
    journal = MemoryJournal()
    desk = Desk(journal)
    for key in (b"a", b"b", b"ba", b"c"):
        desk.ask(put(key))
    desk.ask(put(b"bb", ttl=10))
    desk.now += 10
    said = desk.ask(DeleteRange(b"b", b"c"))
    assert (said.revision, said.result) == (6, BatchResult(6, [2]))
    assert decode_revision(6, journal.rows[6]).changes == ((b"b", None), (b"ba", None))
    assert data(desk) == {b"a": b"1", b"c": b"1"}
    assert desk.ask(DeleteRange(b"c", b"a")).result == BatchResult(0, [0])
    assert desk.ask(DeleteRange(b"", None)).result == BatchResult(7, [2])


def test_a_range_with_too_many_keys_is_not_deleted_at_all() -> None:
    desk = desk_with(b"a", b"b", b"c", settings=Settings(max_batch_size=2))
    error = desk.ask(DeleteRange(b"", None)).error
    assert isinstance(error, RangeTooLarge)
    assert error.details == {"limit": 2}
    assert len(data(desk)) == 3
    assert desk.ask(DeleteRange(b"b", None)).result == BatchResult(4, [2])


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("how", ["batch", "shared"])
def test_a_deletion_that_another_one_has_made_needless_waits_for_that(how: str, sealed: bool) -> None:
    desk, journal = held_with(b"k")
    last: Message[Any] = batch(put(b"k"), Delete(b"k"))
    if how == "shared":
        desk.ask(Begin(SHARED))
        desk.ask(Delete(b"k", SHARED))
        last = Commit(SHARED)
    if not sealed:
        desk.ask(put(b"other"))
    desk.ask(Delete(b"k"))
    needless = desk.ask(last)
    # If it were told now, and the power cut, the key would be back.
    assert not needless.answered
    catch_up(desk, journal)
    assert needless.revision == (2 if sealed else 3)


def test_how_large_the_values_are_does_not_matter_to_a_range_deleted() -> None:
    desk = Desk(settings=Settings(max_body_size=100))
    for key in (b"a", b"b", b"c"):
        desk.ask(put(key, b"v" * 200))
    assert desk.ask(DeleteRange(b"", None)).result == BatchResult(4, [3])


def test_a_range_deleted_rests_on_what_is_staged_in_it() -> None:
    desk, journal = held_with(b"a")
    desk.ask(Delete(b"a"))
    nothing = desk.ask(DeleteRange(b"", None))
    elsewhere = desk.ask(DeleteRange(b"b", None))
    assert [nothing.answered, elsewhere.answered] == [False, True]
    catch_up(desk, journal)
    assert (nothing.revision, nothing.result) == (2, BatchResult(0, [0]))


@pytest.mark.parametrize("within", [SHARED, "t"])
def test_a_range_deleted_in_a_transaction_is_tombstones_of_its_topmost_level(within: Within) -> None:
    desk = desk_with(b"a", b"b")
    desk.ask(Open("t") if within == "t" else Begin(SHARED))
    desk.ask(put(b"c", b"1", within))
    desk.ask(Begin(within))
    desk.ask(Delete(b"a", within))
    assert desk.ask(DeleteRange(b"", None, within)).result == BatchResult(0, [2])
    assert data(desk, within) == {}
    assert set(data(desk)) == {b"a", b"b"}
    desk.ask(Rollback(within))
    assert set(data(desk, within)) == {b"a", b"b", b"c"}
    assert desk.ask(DeleteRange(b"", None, within)).result == BatchResult(0, [3])
    desk.ask(Commit(within))
    assert data(desk) == {}
    assert desk.owner.revision == 3


@pytest.mark.parametrize(
    "phantom", [put(b"b"), put(b"a", b"2"), Delete(b"a"), batch(Increment(b"bb", 1))], ids=str
)
def test_whatever_happens_in_a_range_deleted_dooms_the_transaction(phantom: Message[Any]) -> None:
    desk = desk_with(b"a", b"z")
    for within, end in (("t", b"c"), ("u", b"a")):
        desk.ask(Open(within))
        desk.ask(DeleteRange(b"", end, within))
    desk.ask(put(b"c"))
    desk.ask(phantom)
    assert isinstance(desk.ask(Commit("t")).error, TransactionConflict)
    assert desk.ask(Commit("u")).error is None


def test_a_transaction_that_deleted_a_record_conflicts_once_that_has_expired() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.ask(Open("t"))
    assert desk.ask(DeleteRange(b"", None, "t")).result.results == [1]
    desk.now += 10
    assert isinstance(desk.ask(Commit("t")).error, TransactionConflict)


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
def damaged() -> Desk:
    tree = DamagedTree()
    tree.holding = False
    desk = Desk(tree=tree, settings=Settings(memtable_size=1))
    desk.ask(put(b"a"))
    desk.ask(put(b"bad"))
    return desk


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
def test_nothing_is_decided_on_a_damaged_record(damaged: Desk, message: Message[Any]) -> None:
    said = damaged.ask(message)
    assert type(said.error) is RecordDamaged
    assert damaged.owner.revision == 2
    assert value_of(damaged.ask(Get(b"a")).result) == b"1"


REPLACING: list[tuple[Set | Delete | Batch, bytes | None]] = [
    (put(b"bad", b"new"), b"new"),
    (Delete(b"bad"), None),
    (batch(put(b"bad", b"new")), b"new"),
    (batch(Delete(b"bad")), None),
]


@pytest.mark.parametrize("once", [None, ONCE])
@pytest.mark.parametrize("within", [OUTSIDE, SHARED, "t"])
@pytest.mark.parametrize(("message", "value"), REPLACING, ids=str)
def test_a_damaged_record_can_be_replaced_and_deleted_wherever_one_speaks(
    damaged: Desk, once: Once | None, within: Within, message: Message[Any], value: bytes | None
) -> None:
    damaged.ask(Open("t") if within == "t" else Begin(SHARED))
    said: Said[Any] = damaged.ask(msgspec.structs.replace(message, within=within, once=once))
    assert said.error is None
    if within is not OUTSIDE:
        assert damaged.ask(Commit(within)).error is None
    (revision,) = damaged.journal.replay(2)
    written = dict(revision.changes)[b"bad"]
    assert (None if written is None else value_of(written)) == value


def test_that_a_record_was_damaged_is_read_too(damaged: Desk) -> None:
    for within in ("t", "u"):
        damaged.ask(Open(within))
    assert isinstance(damaged.ask(Get(b"bad", "t")).error, RecordDamaged)
    assert damaged.ask(Delete(b"bad", "u")).result == Written(0, False)
    damaged.ask(Delete(b"bad"))
    for within in ("t", "u"):
        assert isinstance(damaged.ask(Commit(within)).error, TransactionConflict)
