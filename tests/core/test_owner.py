"""What the owner does besides its promises: records, ranges, folds, recovery, the stop."""

from typing import Any

import pytest

from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    Batch,
    Begin,
    Commit,
    Inspect,
    Open,
    Rollback,
    Status,
    Stop,
)
from kvactor.core.operations import Delete, Increment
from kvactor.core.records import value_of
from kvactor.core.work import Work
from kvactor.errors import DataDamaged, InvalidRequest, RecordDamaged, TransactionConflict
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.core.builders import TICK, delete, get, keys, put, record_of, scan, value
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness

#: A memtable of this size is full with one entry, and writes do not stall before there are four more.
ONE_ENTRY = 150

# -- records --


def test_a_record_says_when_its_key_was_created_and_last_written() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a"))
    harness.ask(put(b"b"))
    harness.ask(put(b"a", b"2"))
    record = record_of(harness, b"a")
    assert (record.created, record.revision, record.value, record.content_type) == (
        1,
        3,
        b"2",
        "text/plain",
    )
    harness.ask(delete(b"a"))
    harness.ask(put(b"a"))
    assert record_of(harness, b"a").created == 5


def test_a_write_that_its_transaction_reads_is_a_draft_without_a_revision() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(put(b"a", b"1", "t"))
    assert record_of(harness, b"a", "t").revision == 0


def test_a_draft_has_a_number_that_never_comes_back_in_its_transaction() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    numbers = []
    for step in (Begin("t"), Rollback("t"), Begin("t"), Commit("t")):
        for key in (b"a", b"a", b"b"):
            harness.ask(put(key, b"1", "t"))
            numbers.append(record_of(harness, key, "t").created)
        harness.ask(step)
    harness.ask(Batch((Increment(b"n", 1), Delete(b"none", must_exist=True)), (), "t"))
    harness.ask(Batch((Increment(b"n", 1),), (), "t"))
    numbers.append(record_of(harness, b"n", "t").created)
    assert numbers == [*range(1, 13), 14]
    harness.ask(Commit("t"))
    assert record_of(harness, b"a").created == record_of(harness, b"a").revision == 1


def test_a_commit_that_changes_nothing_makes_no_revision() -> None:
    harness = OwnerHarness()
    for transaction in ("t", "u"):
        harness.ask(Open(transaction))
    harness.ask(put(b"a", b"1", "t"))
    harness.ask(delete(b"a", "t"))
    assert harness.ask(Commit("t")).revision == 0
    assert harness.ask(Commit("u")).revision == 0
    assert harness.ask(Status()).result.keys == 0


# -- ranges --


def test_a_range_is_merged_from_all_layers_in_both_directions() -> None:
    tree = HeldTree()
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=ONE_ENTRY))
    for key in (b"a", b"b", b"c", b"d"):
        harness.ask(put(key))
    harness.ask(delete(b"b"))
    harness.ask(Open("t"))
    harness.ask(delete(b"c", "t"))
    harness.ask(Begin("t"))
    harness.ask(put(b"bb", b"1", "t"))
    assert keys(harness) == [b"a", b"c", b"d"]
    assert keys(harness, transaction="t", reverse=True) == [b"d", b"bb", b"a"]
    assert keys(harness, transaction="t", start=b"b", end=b"d") == [b"bb"]
    page = harness.ask(scan(limit=2, reverse=True)).result
    assert ([key for key, _ in page.items], page.more) == ([b"d", b"c"], True)
    assert isinstance(harness.ask(scan(limit=0)).error, InvalidRequest)


def test_a_page_that_was_cut_short_has_read_nothing_beyond_its_last_item() -> None:
    harness = OwnerHarness()
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key))
    for transaction, reverse in (("up", False), ("down", True)):
        harness.ask(Open(transaction))
        harness.ask(scan(limit=1, transaction=transaction, reverse=reverse))
    harness.ask(put(b"a0"))
    harness.ask(put(b"bb"))
    assert [harness.ask(Inspect(transaction)).error for transaction in ("up", "down")] == [None, None]
    harness.ask(put(b"a"))
    assert isinstance(harness.ask(Inspect("up")).error, TransactionConflict)
    assert harness.ask(Inspect("down")).error is None
    harness.ask(put(b"zz"))
    assert isinstance(harness.ask(Inspect("down")).error, TransactionConflict)


# -- storage --


def test_a_frozen_memtable_is_read_until_it_is_folded_and_the_journal_keeps_its_history() -> None:
    journal, tree = MemoryJournal(), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=ONE_ENTRY, history=2))
    harness.ask(put(b"a"))
    harness.ask(put(b"b"))
    assert keys(harness) == [b"a", b"b"]
    assert list(journal.rows) == [1, 2]
    report = harness.ask(Status()).result
    assert (report.folded, report.memtable_keys, report.keys) == (0, 1, 2)
    assert harness.owner.writer.folds_lag
    tree.holding = False
    tree.release()
    harness.settle()
    for _ in range(5):
        harness.ask(put(b"b"))
    assert harness.ask(Status()).result.folded == 7
    assert list(journal.rows) == [6, 7]
    assert not harness.owner.writer.folds_lag


def test_a_key_overwritten_while_it_is_folded_has_its_new_value() -> None:
    tree = HeldTree()
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=ONE_ENTRY))
    for key in (b"a", b"b", b"c"):
        harness.ask(put(key, b"old"))
    # The first of them is being folded; now the others are, while the first is in the tree.
    tree.release()
    harness.settle()
    assert tree.pending
    harness.ask(put(b"a", b"new"))
    harness.ask(put(b"b", b"new"))
    harness.ask(delete(b"c"))
    harness.ask(Open("t"))
    for transaction in (AUTOCOMMIT, "t"):
        assert value(harness, b"a", transaction) == b"new"
        assert value(harness, b"b", transaction) == b"new"
        assert value(harness, b"c", transaction) is None
        items = harness.ask(scan(transaction=transaction)).result.items
        assert [(key, value_of(record)) for key, record in items] == [(b"a", b"new"), (b"b", b"new")]


def test_a_restart_replays_the_revisions_that_are_not_folded_and_counts_the_keys() -> None:
    journal, tree = MemoryJournal(), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=ONE_ENTRY))
    harness.ask(put(b"a", ttl=10))
    harness.ask(put(b"b"))
    harness.ask(put(b"b", b"2"))
    harness.ask(delete(b"a"))
    harness.ask(put(b"c", ttl=10))
    again = OwnerHarness(journal, MemoryTree())
    assert keys(again) == [b"b", b"c"]
    assert again.ask(Status()).result.keys == 2
    assert record_of(again, b"b").revision == 3
    again.now += 10
    again.tell(TICK)
    assert keys(again) == [b"b"]
    assert again.owner.revision == 6


def test_the_journal_is_trimmed_even_if_only_one_key_is_written() -> None:
    journal = MemoryJournal()
    harness = OwnerHarness(journal, settings=Settings(history=10, memtable_size=1_000))
    for number in range(1_000):
        harness.ask(put(b"counter", b"%d" % number))
    assert 10 <= len(journal.rows) < 100
    assert harness.ask(Status()).result.folded > 900


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
        def get(self, key: bytes, work: Work) -> Any:
            raise RecordDamaged(key.decode())

        head = get

    harness = OwnerHarness(tree=DamagedTree())
    assert isinstance(harness.ask(get(b"a")).error, RecordDamaged)
    harness.ask(put(b"a", b"new"))
    record = record_of(harness, b"a")
    assert (record.value, record.created) == (b"new", 1)
    assert harness.ask(delete(b"b")).error is None
    assert value(harness, b"b") is None


def test_a_stop_flushes_and_folds_everything_before_the_owner_is_finished() -> None:
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


def test_a_stop_rolls_back_the_shared_transaction_and_logs_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = OwnerHarness()
    harness.ask(Begin(SHARED))
    harness.ask(put(b"a", transaction=SHARED))
    harness.tell(Stop())
    assert "the shared transaction was open at depth 1 and has been rolled back" in caplog.text
    assert harness.owner.finished
    assert harness.owner.revision == 0
