"""What idempotency keys keep is bounded, per key and together: the oldest are forgotten first."""

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.keyspace import FORGOTTEN_PER_REVISION
from kvactor.core.memory import Lease, MemoryAccount
from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    Batch,
    Begin,
    Commit,
    Open,
    Rollback,
    Status,
    TransactionRef,
)
from kvactor.core.operations import Get, Increment, Range
from kvactor.core.records import HIDDEN, decode_revision
from kvactor.core.work import Work
from kvactor.errors import AnswerTooLarge, RecordDamaged
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.core.builders import DAY, TICK, batch, data, delete_range, put, value
from tests.core.harness import OwnerHarness, RecordingReply

KiB = 1024
#: Room for the results of three writes and their overhead, but not of four.
THREE = Settings(max_idempotency_size=1600)


def key(number: int) -> IdempotencyKey:
    return IdempotencyKey(b"%06d" % number, b"print")


def count(number: int, transaction: TransactionRef = AUTOCOMMIT) -> Batch:
    """A write that, done twice, leaves a 2."""
    name = b"n%06d" % number
    return batch(Increment(name, 1), transaction=transaction, idempotency_key=key(number))


def remembered(harness: OwnerHarness, numbers: range) -> list[int]:
    """Which of the idempotency keys are remembered, as the owner has it: hidden keys in the store."""
    gone: set[bytes] = set()
    there: set[bytes] = set()
    for row in harness.journal.replay(0):
        for name, record in row.changes:
            (gone if record is None else there).add(name)
            (there if record is None else gone).discard(name)
    return [number for number in numbers if HIDDEN + key(number).key in there]


def journal_of(harness: OwnerHarness) -> MemoryJournal:
    assert isinstance(harness.journal, MemoryJournal)
    return harness.journal


class DamagedTree(MemoryTree):
    """A tree of which a range finds one record damaged."""

    damaged = b""

    def range(
        self, start: bytes, end: bytes | None, reverse: bool, values: bool, work: Work
    ) -> Iterator[tuple[bytes, bytes]]:
        for name, record in super().range(start, end, reverse, values, work):
            if name == self.damaged:
                raise RecordDamaged("a record fails its checksum")
            yield name, record


# -- per key --


def test_a_batch_under_a_key_that_reads_more_than_is_kept_is_refused_and_nothing_is_done() -> None:
    harness = OwnerHarness(settings=Settings(max_idempotency_reads=10 * KiB))
    harness.ask(put(b"a", b"1" * 6 * KiB))
    for reads in ([Get(b"a"), Get(b"a")], [Range(), Range()]):
        both = (Increment(b"n", 1), *reads)
        reply: RecordingReply[Any] = harness.ask(batch(*both, idempotency_key=key(1)))
        assert isinstance(reply.error, AnswerTooLarge)
        assert reply.error.details == {"operation": 2}
        assert "Idempotency-Key" in str(reply.error)
        assert value(harness, b"n") is None
        # Without a key nothing is kept, and with less read it is done, and repeated as it was.
        assert harness.ask(batch(*both[1:])).error is None
    one = batch(Increment(b"n", 1), Get(b"a"), idempotency_key=key(1))
    first = harness.ask(one).result
    harness.ask(put(b"a"))
    assert harness.ask(one).result == first
    assert value(harness, b"n") == b"1"


def test_writes_alone_are_done_under_a_key_however_many_they_are() -> None:
    harness = OwnerHarness(settings=Settings(max_idempotency_reads=0))
    one = batch(*(Increment(b"n%d" % i, 1 << 60) for i in range(2000)), idempotency_key=key(1))
    first = harness.ask(one).result
    assert harness.ask(one).result == first


def test_forty_batches_that_read_seven_mebibytes_each_keep_nothing_of_it() -> None:
    harness = OwnerHarness()
    for number in range(7):
        harness.ask(put(b"%d" % number, bytes(1 << 20)))
    before = sum(map(len, journal_of(harness).rows.values()))
    reads = [Get(b"%d" % number) for number in range(7)]
    for number in range(40):
        reply: RecordingReply[Any] = harness.ask(batch(*reads, idempotency_key=key(number)))
        assert isinstance(reply.error, AnswerTooLarge)
    for number in range(40):
        harness.ask(count(number))
    assert sum(map(len, journal_of(harness).rows.values())) < before + 40 * KiB


def test_a_kept_response_counts_in_the_account_of_memory_when_it_is_repeated() -> None:
    account = MemoryAccount(1 << 20)
    harness = OwnerHarness()
    harness.ask(put(b"a", b"1" * 60 * KiB))
    one = batch(Get(b"a"), idempotency_key=key(1))
    harness.ask(one)
    lease = Lease(account, account.nobody)
    harness.owner.drain(harness.now, [(one, RecordingReply[Any](), lease)])
    assert account.used >= 60 * KiB
    lease.close()


# -- together --


def test_beyond_the_bound_the_oldest_key_is_forgotten_in_the_revision_of_the_new_one() -> None:
    harness = OwnerHarness(settings=THREE)
    for number in range(3):
        harness.ask(count(number))
    assert remembered(harness, range(9)) == [0, 1, 2]
    harness.ask(count(3))
    assert harness.owner.revision == 4
    changes = dict(decode_revision(4, journal_of(harness).rows[4]).changes)
    assert changes[HIDDEN + key(0).key] is None
    assert remembered(harness, range(9)) == [1, 2, 3]
    # It counts once, and is given back once: what fits goes on to fit.
    for number in range(4, 50):
        harness.ask(count(number))
        assert remembered(harness, range(50)) == [number - 2, number - 1, number]
    assert harness.ask(count(48)).result.results == [1]
    assert harness.ask(count(0)).result.results == [2]


def test_a_large_kept_response_displaces_as_many_as_it_needs_room_for() -> None:
    harness = OwnerHarness(settings=Settings(max_idempotency_size=8 * KiB))
    harness.ask(put(b"a", b"1" * 5 * KiB))
    numbers = range(1, 20)
    for number in numbers:
        harness.ask(count(number))
    harness.ask(batch(Increment(b"n", 1), Get(b"a"), idempotency_key=key(99)))
    left = remembered(harness, range(100))
    assert left[-1] == 99
    assert 3 <= len(left) < len(numbers)
    assert left[:-1] == list(numbers)[-len(left) + 1 :]


@pytest.mark.parametrize("memtable", [1, 1 << 20], ids=["folded", "not folded"])
def test_the_bound_holds_after_a_restart_in_the_same_order(memtable: int) -> None:
    settings = Settings(max_idempotency_size=THREE.max_idempotency_size, memtable_size=memtable)
    journal, tree = MemoryJournal(), MemoryTree()
    first = OwnerHarness(journal, tree, settings)
    for number in (5, 1, 3):  # not in the order of the keys
        first.ask(count(number))
    assert (tree.applied == 3) is (memtable == 1)
    for new, left in ((2, [1, 2, 3]), (4, [2, 3, 4]), (6, [2, 4, 6])):
        again = OwnerHarness(journal, tree, settings)
        again.ask(count(new))
        assert remembered(again, range(9)) == left


def test_a_lower_bound_after_a_restart_is_reached_by_sweeps() -> None:
    journal = MemoryJournal()
    first = OwnerHarness(journal)
    for number in range(9):
        first.ask(count(number))
    again = OwnerHarness(journal, settings=THREE)
    assert remembered(again, range(9)) == list(range(9))
    again.tell(TICK)
    assert remembered(again, range(9)) == [6, 7, 8]
    assert again.owner.revision == 10
    again.tell(TICK)
    assert again.owner.revision == 10


def test_one_revision_forgets_a_bounded_number_of_keys_and_sweeps_forget_the_rest() -> None:
    journal, numbers = MemoryJournal(), range(2 * FORGOTTEN_PER_REVISION + 10)
    first = OwnerHarness(journal)
    for number in numbers:
        first.ask(count(number))
    again = OwnerHarness(journal, settings=THREE)
    again.ask(count(len(numbers)))
    changes = decode_revision(again.owner.revision, journal.rows[again.owner.revision]).changes
    assert len(changes) == 2 + FORGOTTEN_PER_REVISION
    again.tell(TICK)
    assert remembered(again, range(len(numbers) + 1)) == list(range(len(numbers) - 2, len(numbers) + 1))


@pytest.mark.parametrize("transaction", [SHARED, "t"])
def test_a_transaction_displaces_keys_when_it_commits_and_a_rollback_displaces_none(
    transaction: TransactionRef,
) -> None:
    harness = OwnerHarness(settings=THREE)
    for number in range(3):
        harness.ask(count(number))
    harness.ask(Open("t") if transaction == "t" else Begin(SHARED))
    for number in range(3, 9):
        harness.ask(Begin(transaction))
        harness.ask(count(number, transaction))
        harness.ask(Rollback(transaction))
    harness.ask(Begin(transaction))
    harness.ask(count(10, transaction))
    harness.ask(Commit(transaction))
    harness.ask(count(11, transaction))
    assert remembered(harness, range(12)) == [0, 1, 2]
    harness.ask(Commit(transaction))
    assert harness.owner.revision == 4
    assert remembered(harness, range(12)) == [2, 10, 11]


def test_a_long_transaction_that_keeps_more_than_the_bound_leaves_its_newest_keys() -> None:
    harness = OwnerHarness(settings=THREE)
    harness.ask(Open("t"))
    for number in range(600):
        harness.ask(count(number, "t"))
    harness.ask(Commit("t"))
    assert remembered(harness, range(600)) == [597, 598, 599]
    assert harness.owner.revision == 1


def test_a_damaged_kept_response_does_not_prevent_a_start(caplog: pytest.LogCaptureFixture) -> None:
    journal, tree = MemoryJournal(), DamagedTree()
    settings = Settings(max_idempotency_size=THREE.max_idempotency_size, memtable_size=1)
    harness = OwnerHarness(journal, tree, settings)
    for number in range(3):
        harness.ask(count(number))
    tree.damaged = HIDDEN + key(1).key
    again = OwnerHarness(journal, tree, settings)
    assert "damaged" in caplog.text
    assert again.ask(count(2)).result.results == [1]
    assert again.ask(count(3)).result.results == [1]


def test_what_has_expired_and_was_swept_has_given_its_room_back() -> None:
    journal = MemoryJournal()
    OwnerHarness(journal, settings=THREE).ask(count(0))
    # The window is shorter now: the newer ones expire first.
    harness = OwnerHarness(journal, settings=structs.replace(THREE, idempotency_window=1.0))
    harness.ask(count(1))
    harness.ask(count(2))
    harness.now += 1000
    harness.tell(TICK)
    assert remembered(harness, range(9)) == [0]
    harness.ask(count(3))
    harness.ask(count(4))
    assert remembered(harness, range(9)) == [0, 3, 4]


def test_a_key_that_is_kept_again_before_it_is_swept_counts_once_and_is_the_newest() -> None:
    harness = OwnerHarness(settings=THREE)
    for number in range(3):
        harness.ask(count(number))
    harness.now += DAY
    harness.ask(count(0))
    harness.ask(count(3))
    assert remembered(harness, range(9)) == [0, 2, 3]
    harness.tell(TICK)
    assert remembered(harness, range(9)) == [0, 3]


def test_a_delete_of_everything_keeps_the_keys_within_their_bound() -> None:
    harness = OwnerHarness(settings=THREE)
    for number in range(5):
        harness.ask(count(number))
    harness.ask(delete_range(b"", None, idempotency_key=key(9)))
    assert data(harness) == {}
    assert remembered(harness, range(10)) == [3, 4, 9]
    assert harness.ask(count(4)).result.results == [1]
    assert data(harness) == {}


def test_the_same_requests_forget_the_same_keys_in_the_same_bytes() -> None:
    journals = []
    for restarts in (False, True):
        journal = MemoryJournal()
        harness = OwnerHarness(journal, settings=THREE)
        for number in (7, 2, 9, 4, 1, 8, 3):
            if restarts:
                harness = OwnerHarness(journal, settings=THREE)
            harness.ask(count(number))
        journals.append(journal.rows)
    assert journals[0] == journals[1]


def test_the_status_counts_only_keys_that_are_remembered() -> None:
    harness = OwnerHarness(settings=THREE)
    for number in range(20):
        harness.ask(count(number))
    assert harness.ask(Status()).result.keys == 20 + 3


# -- of one client --


def test_a_client_pushes_out_its_own_keys_and_none_of_others() -> None:
    harness = OwnerHarness(settings=THREE)
    account = MemoryAccount(1 << 20)

    def write(number: int, address: str) -> None:
        lease = Lease(account, account.connected(address))
        harness.owner.drain(harness.now, [(count(number), RecordingReply[Any](), lease)])
        harness.settle()

    write(0, "victim")
    for number in range(1, 50):
        write(number, "flood")
    assert remembered(harness, range(50)) == [0, 49]
    assert harness.ask(count(0)).result.results == [1]
