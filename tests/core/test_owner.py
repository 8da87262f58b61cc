"""What the owner does besides its promises: sweeps, folds, idle transactions, repeated commits,
recovery, the stop.
"""

from typing import Any

import pytest

from kvactor.core.messages import (
    AUTOCOMMIT,
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
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness

TICK = Tick(1 << 40)


def put(key: bytes, value: bytes = b"1", within: Within = AUTOCOMMIT, ttl: int | None = None) -> Set:
    return Set(key, value, "text/plain", within, ttl)


def keys(harness: OwnerHarness, **bounds: Any) -> list[bytes]:
    return [key for key, _ in harness.ask(Range(**bounds)).result.items]


# -- records --


def test_a_record_says_when_its_key_was_created_and_last_written() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a"))
    harness.ask(put(b"b"))
    harness.ask(put(b"a", b"2"))
    record = decode(harness.ask(Get(b"a")).result)
    assert (record.created, record.revision, record.value, record.content_type) == (
        1,
        3,
        b"2",
        "text/plain",
    )
    harness.ask(Delete(b"a"))
    harness.ask(put(b"a"))
    assert decode(harness.ask(Get(b"a")).result).created == 5


def test_an_own_write_in_a_transaction_is_a_draft_without_a_revision() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(put(b"a", b"1", "t"))
    assert decode(harness.ask(Get(b"a", "t")).result).revision == 0


def test_what_changes_nothing_is_no_revision() -> None:
    harness = OwnerHarness()
    for within in ("t", "u"):
        harness.ask(Open(within))
    harness.ask(put(b"a", b"1", "t"))
    harness.ask(Delete(b"a", "t"))
    assert harness.ask(Commit("t")).revision == 0
    assert harness.ask(Commit("u")).revision == 0
    assert harness.ask(Status()).result.keys == 0


# -- expiry --


def test_a_key_ends_at_its_time_for_every_reader_and_is_removed_by_the_next_tick() -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal)
    harness.ask(put(b"a", ttl=1000))
    harness.ask(put(b"b", ttl=1001))
    harness.ask(put(b"c"))
    harness.now += 1000
    assert isinstance(harness.ask(Get(b"a")).error, KeyNotFound)
    assert isinstance(harness.ask(Delete(b"a")).error, KeyNotFound)
    assert keys(harness) == [b"b", b"c"]
    assert harness.ask(Status()).result.keys == 3
    harness.tell(TICK)
    assert harness.ask(Status()).result.keys == 2
    assert decode_revision(4, journal.rows[4]).changes == ((b"a", None),)
    harness.tell(TICK)
    assert harness.owner.revision == 4


def test_a_new_value_in_time_keeps_a_key() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.ask(put(b"a", b"2"))
    harness.now += 10
    harness.tell(TICK)
    assert value_of(harness.ask(Get(b"a")).result) == b"2"
    assert harness.owner.revision == 2


def test_a_key_that_is_written_after_its_end_is_a_new_one() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    harness.ask(put(b"a"))
    assert decode(harness.ask(Get(b"a")).result).created == 2
    assert harness.ask(Status()).result.keys == 1


def test_many_keys_that_end_at_once_are_swept_in_several_revisions_wherever_they_are() -> None:
    tree = HeldTree()
    tree.holding = False
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=300_000))
    for n in range(2 * SWEEP_LIMIT + 500):
        harness.send(put(b"%06d" % n, ttl=10))
        if n == SWEEP_LIMIT:
            # From here on a part is frozen, and a part is in the memtable.
            harness.settle()
            tree.holding = True
    harness.settle()
    assert tree.pending
    harness.now += 10
    before = harness.owner.revision
    harness.tell(TICK)
    assert harness.ask(Status()).result.keys == 0
    assert harness.owner.revision == before + 3


def test_no_key_is_swept_while_the_disk_is_full_and_none_is_forgotten() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    harness.tell(Tick(0))
    assert harness.owner.revision == 1
    harness.tell(TICK)
    assert harness.owner.revision == 2


def test_a_transaction_that_saw_a_record_conflicts_once_that_has_expired() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.ask(put(b"b", ttl=20))
    for within in ("get", "scan", "blind", "later"):
        harness.ask(Open(within))
    harness.ask(Get(b"a", "get"))
    harness.ask(Range(within="scan"))
    harness.ask(put(b"a", b"x", "blind"))
    harness.ask(Get(b"b", "later"))
    harness.now += 10
    assert isinstance(harness.ask(Get(b"zzz", "get")).error, TransactionConflict)
    assert isinstance(harness.ask(Commit("scan")).error, TransactionConflict)
    assert harness.ask(Commit("blind")).error is None
    assert harness.ask(Commit("later")).error is None


def test_time_stands_still_when_the_clock_is_set_back() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    harness.now += 10
    assert isinstance(harness.ask(Get(b"a")).error, KeyNotFound)
    harness.now -= 5
    assert isinstance(harness.ask(Get(b"a")).error, KeyNotFound)


# -- transactions --


def test_an_inner_rollback_keeps_what_was_read() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(Begin("t"))
    harness.ask(Get(b"a", "t"))
    harness.ask(Rollback("t"))
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_transaction_that_only_wrote_never_conflicts() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(put(b"a", b"t", "t"))
    harness.ask(put(b"a", b"other"))
    assert harness.ask(Commit("t")).revision == 2
    assert value_of(harness.ask(Get(b"a")).result) == b"t"


def test_reading_an_own_write_is_no_read() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(put(b"a", b"t", "t"))
    harness.ask(Get(b"a", "t"))
    harness.ask(put(b"a", b"other"))
    assert harness.ask(Commit("t")).error is None


def test_a_conflicted_transaction_refuses_all_but_its_end() -> None:
    harness = OwnerHarness()
    for within in ("t", "u", "v"):
        harness.ask(Open(within))
        harness.ask(Begin(within))
        harness.ask(Get(b"a", within))
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Rollback("t")).error, TransactionConflict)
    assert isinstance(harness.ask(Inspect("t")).error, TransactionConflict)
    assert harness.ask(Drop("t")).result.depth == 0
    assert isinstance(harness.ask(Inspect("t")).error, TransactionNotFound)
    # A commit ends it, and says so again when it is repeated.
    for _ in range(3):
        assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)
    assert isinstance(harness.ask(Get(b"a", "u")).error, TransactionConflict)
    assert harness.ask(Status()).result.transactions == 1


def test_a_rollback_ends_a_conflicted_transaction_of_one_level() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(Get(b"a", "t"))
    harness.ask(put(b"a"))
    assert harness.ask(Rollback("t")).result.depth == 0


def test_a_repeated_commit_gets_the_same_answer_and_waits_for_the_same_flush() -> None:
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


def test_a_commit_that_wrote_nothing_waits_for_what_it_has_read() -> None:
    journal = HeldJournal()
    harness = OwnerHarness(journal)
    harness.ask(put(b"a"))
    harness.ask(Open("t"))
    harness.ask(Get(b"a", "t"))
    committed = harness.ask(Commit("t"))
    assert not committed.answered
    journal.release()
    harness.settle()
    assert committed.revision == 1


def test_an_idle_transaction_is_rolled_back_at_its_time_and_by_a_tick() -> None:
    harness = OwnerHarness()
    for within, timeout in (("t", None), ("u", 60_000)):
        assert harness.ask(Open(within, timeout)).result.expires_at == harness.now + (timeout or 30_000)
        harness.ask(put(within.encode(), b"1", within))
    harness.now += 29_999
    harness.ask(Get(b"x", "u"))
    harness.now += 1
    assert isinstance(harness.ask(Commit("t")).error, TransactionNotFound)
    assert harness.ask(Inspect("u")).result.depth == 1
    harness.now += 60_000
    harness.tell(TICK)
    assert harness.ask(Status()).result.transactions == 0
    assert keys(harness) == []


def test_transactions_that_conflicted_make_room_for_new_ones() -> None:
    harness = OwnerHarness(settings=Settings(max_transactions=2))
    for within in ("t", "u"):
        harness.ask(Open(within))
    harness.ask(Get(b"x", "t"))
    assert isinstance(harness.ask(Open("v")).error, TooManyTransactions)
    harness.ask(put(b"x"))
    assert harness.ask(Open("v")).error is None
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)
    assert harness.ask(Inspect("u")).result.depth == 1
    assert isinstance(harness.ask(Open("w")).error, TooManyTransactions)


def test_the_journal_is_trimmed_though_one_key_is_all_that_is_written() -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal, settings=Settings(history=10, memtable_size=1_000))
    for number in range(1_000):
        harness.ask(put(b"counter", b"%d" % number))
    assert 10 <= len(journal.rows) < 100
    assert harness.ask(Status()).result.folded > 900


def test_an_idle_timeout_has_bounds() -> None:
    harness = OwnerHarness()
    for timeout in (0, -1, 300_001):
        assert isinstance(harness.ask(Open("t", timeout)).error, InvalidRequest)
    assert harness.ask(Open("t", 300_000)).error is None


def test_the_shared_transaction_has_no_limit_by_default_and_is_warned_about_once(
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
def test_the_shared_transaction_can_have_a_limit(ticks: bool, caplog: pytest.LogCaptureFixture) -> None:
    harness = OwnerHarness(settings=Settings(shared_transaction_idle_timeout=5))
    harness.ask(Begin(SHARED))
    harness.ask(put(b"a", b"1", SHARED))
    harness.now += 5000
    if ticks:
        harness.tell(TICK)
    assert isinstance(harness.ask(Commit(SHARED)).error, NoTransaction)
    assert "the shared transaction was idle for 5 s and has been rolled back" in caplog.text


def test_the_last_commit_of_the_shared_transaction_wins() -> None:
    harness = OwnerHarness()
    harness.ask(Begin(SHARED))
    assert isinstance(harness.ask(Get(b"a", SHARED)).error, KeyNotFound)
    harness.ask(put(b"a", b"outside"))
    assert value_of(harness.ask(Get(b"a", SHARED)).result) == b"outside"
    harness.ask(put(b"a", b"shared", SHARED))
    harness.ask(put(b"a", b"outside again"))
    harness.ask(Commit(SHARED))
    assert value_of(harness.ask(Get(b"a")).result) == b"shared"


# -- ranges --


def test_a_range_is_merged_from_all_layers_in_both_directions() -> None:
    tree = HeldTree()
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=1))
    for key in (b"a", b"b", b"c", b"d"):
        harness.ask(put(key))
    harness.ask(Delete(b"b"))
    harness.ask(Open("t"))
    harness.ask(Delete(b"c", "t"))
    harness.ask(Begin("t"))
    harness.ask(put(b"bb", b"1", "t"))
    assert keys(harness) == [b"a", b"c", b"d"]
    assert keys(harness, within="t", reverse=True) == [b"d", b"bb", b"a"]
    assert keys(harness, within="t", start=b"b", end=b"d") == [b"bb"]
    page = harness.ask(Range(limit=2, reverse=True)).result
    assert ([key for key, _ in page.items], page.more) == ([b"d", b"c"], True)
    assert isinstance(harness.ask(Range(limit=0)).error, InvalidRequest)


def test_a_page_that_was_cut_short_says_nothing_of_what_lies_beyond() -> None:
    harness = OwnerHarness()
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key))
    for within, reverse in (("up", False), ("down", True)):
        harness.ask(Open(within))
        harness.ask(Range(limit=1, within=within, reverse=reverse))
    harness.ask(put(b"a0"))
    harness.ask(put(b"bb"))
    assert [harness.ask(Inspect(within)).error for within in ("up", "down")] == [None, None]
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Inspect("up")).error, TransactionConflict)
    assert harness.ask(Inspect("down")).error is None
    harness.ask(put(b"zz"))
    assert isinstance(harness.ask(Inspect("down")).error, TransactionConflict)


# -- storage --


def test_what_is_frozen_is_read_until_it_is_folded_and_the_journal_keeps_its_history() -> None:
    journal, tree = MemoryJournal(), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=1, history=2))
    harness.ask(put(b"a"))
    harness.ask(put(b"b"))
    assert keys(harness) == [b"a", b"b"]
    assert list(journal.rows) == [1, 2]
    report = harness.ask(Status()).result
    assert (report.folded, report.memtable_keys, report.keys) == (0, 1, 2)
    assert harness.owner.behind
    tree.holding = False
    tree.release()
    harness.settle()
    for _ in range(5):
        harness.ask(put(b"b"))
    assert harness.ask(Status()).result.folded == 7
    assert list(journal.rows) == [6, 7]
    assert not harness.owner.behind


def test_what_is_overwritten_while_it_is_folded_is_read_anew() -> None:
    tree = HeldTree()
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=1))
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key, b"old"))
    # The first of them is being folded; now the others are, while the first is in the tree.
    tree.release()
    harness.settle()
    assert tree.pending
    harness.ask(put(b"a", b"new"))
    harness.ask(put(b"b", b"new"))
    harness.ask(Delete(b"c"))
    harness.ask(Open("t"))
    for within in (AUTOCOMMIT, "t"):
        assert value_of(harness.ask(Get(b"a", within)).result) == b"new"
        assert value_of(harness.ask(Get(b"b", within)).result) == b"new"
        assert isinstance(harness.ask(Get(b"c", within)).error, KeyNotFound)
        items = harness.ask(Range(within=within)).result.items
        assert [(key, value_of(record)) for key, record in items] == [(b"a", b"new"), (b"b", b"new")]


def test_a_restart_replays_what_is_not_folded_and_counts_right() -> None:
    journal, tree = MemoryJournal(), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=1))
    harness.ask(put(b"a", ttl=10))
    harness.ask(put(b"b"))
    harness.ask(put(b"b", b"2"))
    harness.ask(Delete(b"a"))
    harness.ask(put(b"c", ttl=10))
    again = OwnerHarness(journal, MemoryTree())
    assert keys(again) == [b"b", b"c"]
    assert again.ask(Status()).result.keys == 2
    assert decode(again.ask(Get(b"b")).result).revision == 3
    again.now += 10
    again.tell(TICK)
    assert keys(again) == [b"b"]
    assert again.owner.revision == 6


def test_a_journal_with_a_gap_or_behind_its_tree_is_refused() -> None:
    journal, tree = MemoryJournal(), MemoryTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=1))
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key))
    with pytest.raises(DataDamaged, match="tree is at revision 3, but the journal ends at 0"):
        OwnerHarness(MemoryJournal(), tree)
    del journal.rows[2]
    with pytest.raises(DataDamaged, match="Revision 2 is missing in the journal, which goes on with 3"):
        OwnerHarness(journal, MemoryTree())


def test_a_damaged_record_can_be_replaced_and_deleted() -> None:
    class DamagedTree(MemoryTree):
        def get(self, key: bytes) -> Any:
            raise RecordDamaged(key.decode())

    harness = OwnerHarness(tree=DamagedTree())
    assert isinstance(harness.ask(Get(b"a")).error, RecordDamaged)
    harness.ask(put(b"a", b"new"))
    record = decode(harness.ask(Get(b"a")).result)
    assert (record.value, record.created) == (b"new", 1)
    assert harness.ask(Delete(b"b")).error is None
    assert isinstance(harness.ask(Get(b"b")).error, KeyNotFound)


def test_a_stop_flushes_and_folds_all_and_then_it_is_over() -> None:
    journal, tree = HeldJournal(), HeldTree()
    harness = OwnerHarness(journal, tree)
    written = harness.ask(put(b"a"))
    harness.tell(Stop())
    assert not harness.owner.finished
    journal.release()
    harness.settle()
    assert written.revision == 1
    assert not harness.owner.finished
    tree.release()
    harness.settle()
    assert harness.owner.finished
    assert tree.applied == 1


def test_a_stop_rolls_back_the_shared_transaction_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    harness = OwnerHarness()
    harness.ask(Begin(SHARED))
    harness.ask(put(b"a", within=SHARED))
    harness.tell(Stop())
    assert "the shared transaction was open at depth 1 and has been rolled back" in caplog.text
    assert harness.owner.finished
    assert harness.owner.revision == 0
