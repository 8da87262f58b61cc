"""What the owner does besides its promises: sweeps, folds, idle transactions, repeated commits,
recovery, the stop.
"""

from typing import Any

import pytest

from kvactor.core.messages import (
    OUTSIDE,
    SHARED,
    Begin,
    Commit,
    Delete,
    Drop,
    Get,
    Inspect,
    Open,
    Range,
    Rollback,
    Set,
    Status,
    Stop,
    Tick,
    Within,
)
from kvactor.core.owner import SWEEP_LIMIT
from kvactor.core.records import NEVER, decode, decode_revision, value_of
from kvactor.errors import (
    DataDamaged,
    InvalidRequest,
    KeyNotFound,
    NoTransaction,
    RecordDamaged,
    TooManyTransactions,
    TransactionConflict,
    TransactionNotFound,
)
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.core.harness import Desk, HeldJournal, HeldTree

TICK = Tick(1 << 40)


def put(key: bytes, value: bytes = b"1", within: Within = OUTSIDE, ttl: int | None = None) -> Set:
    return Set(key, value, "text/plain", within, ttl)


def keys(desk: Desk, **bounds: Any) -> list[bytes]:
    return [key for key, _ in desk.ask(Range(**bounds)).result.items]


# -- records --


def test_a_record_says_when_its_key_was_created_and_last_written() -> None:
    desk = Desk()
    desk.ask(put(b"a"))
    desk.ask(put(b"b"))
    desk.ask(put(b"a", b"2"))
    record = decode(desk.ask(Get(b"a")).result)
    assert (record.created, record.revision, record.value, record.content_type) == (
        1,
        3,
        b"2",
        "text/plain",
    )
    desk.ask(Delete(b"a"))
    desk.ask(put(b"a"))
    assert decode(desk.ask(Get(b"a")).result).created == 5


def test_an_own_write_in_a_transaction_is_a_draft_without_a_revision() -> None:
    desk = Desk()
    desk.ask(Open("t"))
    desk.ask(put(b"a", b"1", "t"))
    assert decode(desk.ask(Get(b"a", "t")).result).revision == 0


def test_what_changes_nothing_is_no_revision() -> None:
    desk = Desk()
    for within in ("t", "u"):
        desk.ask(Open(within))
    desk.ask(put(b"a", b"1", "t"))
    desk.ask(Delete(b"a", "t"))
    assert desk.ask(Commit("t")).revision == 0
    assert desk.ask(Commit("u")).revision == 0
    assert desk.ask(Status()).result.keys == 0


# -- expiry --


def test_a_key_ends_at_its_time_for_every_reader_and_is_removed_by_the_next_tick() -> None:
    journal = MemoryJournal()
    desk = Desk(journal)
    desk.ask(put(b"a", ttl=1000))
    desk.ask(put(b"b", ttl=1001))
    desk.ask(put(b"c"))
    desk.now += 1000
    assert isinstance(desk.ask(Get(b"a")).error, KeyNotFound)
    assert isinstance(desk.ask(Delete(b"a")).error, KeyNotFound)
    assert keys(desk) == [b"b", b"c"]
    assert desk.ask(Status()).result.keys == 3
    desk.tell(TICK)
    assert desk.ask(Status()).result.keys == 2
    assert decode_revision(4, journal.rows[4]).changes == ((b"a", None),)
    desk.tell(TICK)
    assert desk.owner.revision == 4


def test_a_new_value_in_time_keeps_a_key() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.ask(put(b"a", b"2"))
    desk.now += 10
    desk.tell(TICK)
    assert value_of(desk.ask(Get(b"a")).result) == b"2"
    assert desk.owner.revision == 2


def test_a_key_that_is_written_after_its_end_is_a_new_one() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.now += 10
    desk.ask(put(b"a"))
    assert decode(desk.ask(Get(b"a")).result).created == 2
    assert desk.ask(Status()).result.keys == 1


def test_many_keys_that_end_at_once_are_swept_in_several_revisions_wherever_they_are() -> None:
    tree = HeldTree()
    tree.holding = False
    desk = Desk(tree=tree, settings=Settings(memtable_size=300_000))
    for n in range(2 * SWEEP_LIMIT + 500):
        desk.send(put(b"%06d" % n, ttl=10))
        if n == SWEEP_LIMIT:
            # From here on a part is frozen, and a part is in the memtable.
            desk.settle()
            tree.holding = True
    desk.settle()
    assert tree.pending
    desk.now += 10
    before = desk.owner.revision
    desk.tell(TICK)
    assert desk.ask(Status()).result.keys == 0
    assert desk.owner.revision == before + 3


def test_no_key_is_swept_while_the_disk_is_full_and_none_is_forgotten() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.now += 10
    desk.tell(Tick(0))
    assert desk.owner.revision == 1
    desk.tell(TICK)
    assert desk.owner.revision == 2


def test_a_transaction_that_saw_a_record_conflicts_once_that_has_expired() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.ask(put(b"b", ttl=20))
    for within in ("get", "scan", "blind", "later"):
        desk.ask(Open(within))
    desk.ask(Get(b"a", "get"))
    desk.ask(Range(within="scan"))
    desk.ask(put(b"a", b"x", "blind"))
    desk.ask(Get(b"b", "later"))
    desk.now += 10
    assert isinstance(desk.ask(Get(b"zzz", "get")).error, TransactionConflict)
    assert isinstance(desk.ask(Commit("scan")).error, TransactionConflict)
    assert desk.ask(Commit("blind")).error is None
    assert desk.ask(Commit("later")).error is None


def test_time_stands_still_when_the_clock_is_set_back() -> None:
    desk = Desk()
    desk.ask(put(b"a", ttl=10))
    desk.now += 10
    assert isinstance(desk.ask(Get(b"a")).error, KeyNotFound)
    desk.now -= 5
    assert isinstance(desk.ask(Get(b"a")).error, KeyNotFound)


# -- transactions --


def test_an_inner_rollback_keeps_what_was_read() -> None:
    desk = Desk()
    desk.ask(Open("t"))
    desk.ask(Begin("t"))
    desk.ask(Get(b"a", "t"))
    desk.ask(Rollback("t"))
    desk.ask(put(b"a"))
    assert isinstance(desk.ask(Commit("t")).error, TransactionConflict)


def test_a_transaction_that_only_wrote_never_conflicts() -> None:
    desk = Desk()
    desk.ask(Open("t"))
    desk.ask(put(b"a", b"t", "t"))
    desk.ask(put(b"a", b"other"))
    assert desk.ask(Commit("t")).revision == 2
    assert value_of(desk.ask(Get(b"a")).result) == b"t"


def test_reading_an_own_write_is_no_read() -> None:
    desk = Desk()
    desk.ask(Open("t"))
    desk.ask(put(b"a", b"t", "t"))
    desk.ask(Get(b"a", "t"))
    desk.ask(put(b"a", b"other"))
    assert desk.ask(Commit("t")).error is None


def test_a_conflicted_transaction_refuses_all_but_its_end() -> None:
    desk = Desk()
    for within in ("t", "u", "v"):
        desk.ask(Open(within))
        desk.ask(Begin(within))
        desk.ask(Get(b"a", within))
    desk.ask(put(b"a"))
    assert isinstance(desk.ask(Rollback("t")).error, TransactionConflict)
    assert isinstance(desk.ask(Inspect("t")).error, TransactionConflict)
    assert desk.ask(Drop("t")).result.depth == 0
    assert isinstance(desk.ask(Inspect("t")).error, TransactionNotFound)
    # A commit ends it, and says so again when it is repeated.
    for _ in range(3):
        assert isinstance(desk.ask(Commit("u")).error, TransactionConflict)
    assert isinstance(desk.ask(Get(b"a", "u")).error, TransactionConflict)
    assert desk.ask(Status()).result.transactions == 1


def test_a_rollback_ends_a_conflicted_transaction_of_one_level() -> None:
    desk = Desk()
    desk.ask(Open("t"))
    desk.ask(Get(b"a", "t"))
    desk.ask(put(b"a"))
    assert desk.ask(Rollback("t")).result.depth == 0


def test_a_repeated_commit_gets_the_same_answer_and_waits_for_the_same_flush() -> None:
    journal = HeldJournal()
    desk = Desk(journal, settings=Settings(remembered_transactions=1))
    desk.ask(Open("t"))
    desk.ask(put(b"a", b"1", "t"))
    first, second = desk.ask(Commit("t")), desk.ask(Commit("t"))
    assert not first.answered
    assert not second.answered
    journal.holding = False
    journal.release()
    desk.settle()
    assert (first.revision, first.result) == (second.revision, second.result)
    desk.ask(Open("u"))
    desk.ask(Commit("u"))
    assert isinstance(desk.ask(Commit("t")).error, TransactionNotFound)


def test_a_commit_that_wrote_nothing_waits_for_what_it_has_read() -> None:
    journal = HeldJournal()
    desk = Desk(journal)
    desk.ask(put(b"a"))
    desk.ask(Open("t"))
    desk.ask(Get(b"a", "t"))
    committed = desk.ask(Commit("t"))
    assert not committed.answered
    journal.release()
    desk.settle()
    assert committed.revision == 1


def test_an_idle_transaction_is_rolled_back_at_its_time_and_by_a_tick() -> None:
    desk = Desk()
    for within, timeout in (("t", None), ("u", 60_000)):
        assert desk.ask(Open(within, timeout)).result.expires_at == desk.now + (timeout or 30_000)
        desk.ask(put(within.encode(), b"1", within))
    desk.now += 29_999
    desk.ask(Get(b"x", "u"))
    desk.now += 1
    assert isinstance(desk.ask(Commit("t")).error, TransactionNotFound)
    assert desk.ask(Inspect("u")).result.depth == 1
    desk.now += 60_000
    desk.tell(TICK)
    assert desk.ask(Status()).result.transactions == 0
    assert keys(desk) == []


def test_transactions_that_conflicted_make_room_for_new_ones() -> None:
    desk = Desk(settings=Settings(max_transactions=2))
    for within in ("t", "u"):
        desk.ask(Open(within))
    desk.ask(Get(b"x", "t"))
    assert isinstance(desk.ask(Open("v")).error, TooManyTransactions)
    desk.ask(put(b"x"))
    assert desk.ask(Open("v")).error is None
    assert isinstance(desk.ask(Commit("t")).error, TransactionConflict)
    assert desk.ask(Inspect("u")).result.depth == 1
    assert isinstance(desk.ask(Open("w")).error, TooManyTransactions)


def test_the_journal_is_trimmed_though_one_key_is_all_that_is_written() -> None:
    journal = MemoryJournal()
    desk = Desk(journal, settings=Settings(history=10, memtable_size=1_000))
    for number in range(1_000):
        desk.ask(put(b"counter", b"%d" % number))
    assert 10 <= len(journal.rows) < 100
    assert desk.ask(Status()).result.folded > 900


def test_an_idle_timeout_has_bounds() -> None:
    desk = Desk()
    for timeout in (0, -1, 300_001):
        assert isinstance(desk.ask(Open("t", timeout)).error, InvalidRequest)
    assert desk.ask(Open("t", 300_000)).error is None


def test_the_shared_transaction_has_no_limit_by_default_and_is_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = Desk()
    assert desk.ask(Begin(SHARED)).result.expires_at == NEVER
    desk.ask(Begin(SHARED))
    desk.now += 60_000
    for _ in range(3):
        desk.tell(TICK)
    assert caplog.text.count("has been open for 60 s, at depth 2") == 1
    report = desk.ask(Status()).result
    assert (report.shared_depth, report.shared_age) == (2, 60_000)
    assert desk.ask(Drop(SHARED)).result.depth == 0
    assert isinstance(desk.ask(Drop(SHARED)).error, NoTransaction)
    assert isinstance(desk.ask(Inspect(SHARED)).error, NoTransaction)


@pytest.mark.parametrize("ticks", [True, False])
def test_the_shared_transaction_can_have_a_limit(ticks: bool, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(settings=Settings(shared_transaction_idle_timeout=5))
    desk.ask(Begin(SHARED))
    desk.ask(put(b"a", b"1", SHARED))
    desk.now += 5000
    if ticks:
        desk.tell(TICK)
    assert isinstance(desk.ask(Commit(SHARED)).error, NoTransaction)
    assert "the shared transaction was idle for 5 s and has been rolled back" in caplog.text


def test_the_last_commit_of_the_shared_transaction_wins() -> None:
    desk = Desk()
    desk.ask(Begin(SHARED))
    assert isinstance(desk.ask(Get(b"a", SHARED)).error, KeyNotFound)
    desk.ask(put(b"a", b"outside"))
    assert value_of(desk.ask(Get(b"a", SHARED)).result) == b"outside"
    desk.ask(put(b"a", b"shared", SHARED))
    desk.ask(put(b"a", b"outside again"))
    desk.ask(Commit(SHARED))
    assert value_of(desk.ask(Get(b"a")).result) == b"shared"


# -- ranges --


def test_a_range_is_merged_from_all_layers_in_both_directions() -> None:
    tree = HeldTree()
    desk = Desk(tree=tree, settings=Settings(memtable_size=1))
    for key in (b"a", b"b", b"c", b"d"):
        desk.ask(put(key))
    desk.ask(Delete(b"b"))
    desk.ask(Open("t"))
    desk.ask(Delete(b"c", "t"))
    desk.ask(Begin("t"))
    desk.ask(put(b"bb", b"1", "t"))
    assert keys(desk) == [b"a", b"c", b"d"]
    assert keys(desk, within="t", reverse=True) == [b"d", b"bb", b"a"]
    assert keys(desk, within="t", start=b"b", end=b"d") == [b"bb"]
    page = desk.ask(Range(limit=2, reverse=True)).result
    assert ([key for key, _ in page.items], page.more) == ([b"d", b"c"], True)
    assert isinstance(desk.ask(Range(limit=0)).error, InvalidRequest)


def test_a_page_that_was_cut_short_says_nothing_of_what_lies_beyond() -> None:
    desk = Desk()
    for key in (b"a", b"b", b"c"):
        desk.ask(put(key))
    for within, reverse in (("up", False), ("down", True)):
        desk.ask(Open(within))
        desk.ask(Range(limit=1, within=within, reverse=reverse))
    desk.ask(put(b"a0"))
    desk.ask(put(b"bb"))
    assert [desk.ask(Inspect(within)).error for within in ("up", "down")] == [None, None]
    desk.ask(put(b"a"))
    assert isinstance(desk.ask(Inspect("up")).error, TransactionConflict)
    assert desk.ask(Inspect("down")).error is None
    desk.ask(put(b"zz"))
    assert isinstance(desk.ask(Inspect("down")).error, TransactionConflict)


# -- storage --


def test_what_is_frozen_is_read_until_it_is_folded_and_the_journal_keeps_its_history() -> None:
    journal, tree = MemoryJournal(), HeldTree()
    desk = Desk(journal, tree, Settings(memtable_size=1, history=2))
    desk.ask(put(b"a"))
    desk.ask(put(b"b"))
    assert keys(desk) == [b"a", b"b"]
    assert list(journal.rows) == [1, 2]
    report = desk.ask(Status()).result
    assert (report.folded, report.memtable_keys, report.keys) == (0, 1, 2)
    assert desk.owner.behind
    tree.holding = False
    tree.release()
    desk.settle()
    for _ in range(5):
        desk.ask(put(b"b"))
    assert desk.ask(Status()).result.folded == 7
    assert list(journal.rows) == [6, 7]
    assert not desk.owner.behind


def test_what_is_overwritten_while_it_is_folded_is_read_anew() -> None:
    tree = HeldTree()
    desk = Desk(tree=tree, settings=Settings(memtable_size=1))
    for key in (b"a", b"b", b"c"):
        desk.ask(put(key, b"old"))
    # The first of them is being folded; now the others are, while the first is in the tree.
    tree.release()
    desk.settle()
    assert tree.pending
    desk.ask(put(b"a", b"new"))
    desk.ask(put(b"b", b"new"))
    desk.ask(Delete(b"c"))
    desk.ask(Open("t"))
    for within in (OUTSIDE, "t"):
        assert value_of(desk.ask(Get(b"a", within)).result) == b"new"
        assert value_of(desk.ask(Get(b"b", within)).result) == b"new"
        assert isinstance(desk.ask(Get(b"c", within)).error, KeyNotFound)
        items = desk.ask(Range(within=within)).result.items
        assert [(key, value_of(record)) for key, record in items] == [(b"a", b"new"), (b"b", b"new")]


def test_a_restart_replays_what_is_not_folded_and_counts_right() -> None:
    journal, tree = MemoryJournal(), HeldTree()
    desk = Desk(journal, tree, Settings(memtable_size=1))
    desk.ask(put(b"a", ttl=10))
    desk.ask(put(b"b"))
    desk.ask(put(b"b", b"2"))
    desk.ask(Delete(b"a"))
    desk.ask(put(b"c", ttl=10))
    again = Desk(journal, MemoryTree())
    assert keys(again) == [b"b", b"c"]
    assert again.ask(Status()).result.keys == 2
    assert decode(again.ask(Get(b"b")).result).revision == 3
    again.now += 10
    again.tell(TICK)
    assert keys(again) == [b"b"]
    assert again.owner.revision == 6


def test_a_journal_with_a_gap_or_behind_its_tree_is_refused() -> None:
    journal, tree = MemoryJournal(), MemoryTree()
    desk = Desk(journal, tree, Settings(memtable_size=1))
    for key in (b"a", b"b", b"c"):
        desk.ask(put(key))
    with pytest.raises(DataDamaged, match="tree is at revision 3, but the journal ends at 0"):
        Desk(MemoryJournal(), tree)
    del journal.rows[2]
    with pytest.raises(DataDamaged, match="Revision 2 is missing in the journal, which goes on with 3"):
        Desk(journal, MemoryTree())


def test_a_damaged_record_can_be_replaced_and_deleted() -> None:
    class DamagedTree(MemoryTree):
        def get(self, key: bytes) -> Any:
            raise RecordDamaged(key.decode())

    desk = Desk(tree=DamagedTree())
    assert isinstance(desk.ask(Get(b"a")).error, RecordDamaged)
    desk.ask(put(b"a", b"new"))
    record = decode(desk.ask(Get(b"a")).result)
    assert (record.value, record.created) == (b"new", 1)
    assert desk.ask(Delete(b"b")).error is None
    assert isinstance(desk.ask(Get(b"b")).error, KeyNotFound)


def test_a_stop_flushes_and_folds_all_and_then_it_is_over() -> None:
    journal, tree = HeldJournal(), HeldTree()
    desk = Desk(journal, tree)
    written = desk.ask(put(b"a"))
    desk.tell(Stop())
    assert not desk.owner.finished
    journal.release()
    desk.settle()
    assert written.revision == 1
    assert not desk.owner.finished
    tree.release()
    desk.settle()
    assert desk.owner.finished
    assert tree.applied == 1


def test_a_stop_rolls_back_the_shared_transaction_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.ask(Begin(SHARED))
    desk.ask(put(b"a", within=SHARED))
    desk.tell(Stop())
    assert "the shared transaction was open at depth 1 and has been rolled back" in caplog.text
    assert desk.owner.finished
    assert desk.owner.revision == 0
