"""Long messages take steps: others are served between them, and nobody sees half of one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvactor.core import keyspace, scheduler
from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import Commit, Message, Open, Stop
from kvactor.core.operations import DeleteRange, Get, Increment, Range, Set
from kvactor.errors import OutcomeUnknown, TransactionConflict
from kvactor.settings import Settings
from tests.core.builders import TICK, batch, delete_range, get, keys, put, scan, value
from tests.core.harness import HeldJournal, OwnerHarness, RecordingReply

MANY = [b"k%03d" % number for number in range(100)]


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "STEP_SIZE", 20)
    monkeypatch.setattr(scheduler, "DRAIN_SIZE", 400)
    monkeypatch.setattr(keyspace, "STAGED_PER_STEP", 10)


def begun(harness: OwnerHarness, message: Message[Any]) -> RecordingReply[Any]:
    reply = harness.send(message)
    assert not reply.answered
    return reply


def step(harness: OwnerHarness) -> None:
    """Give the owner the news of now, but none that comes of it."""
    for _ in range(len(harness.news)):
        harness.owner.drain(harness.now, [(harness.news.pop(0), None, UNCOUNTED)])


def write_many(content: bytes = b"1") -> Message[Any]:
    return batch(*(Set(key, content, "") for key in MANY))


def committed(harness: OwnerHarness, name: str = "t") -> Commit:
    """A transaction with many writes, and its commit."""
    harness.ask(Open(name))
    for key in MANY:
        harness.ask(put(key, b"1", name))
    return Commit(name)


def test_a_long_batch_is_one_revision_and_nobody_sees_half_of_it() -> None:
    harness = OwnerHarness()
    reply = begun(harness, write_many())
    seen = set()
    while not reply.answered:
        step(harness)
        seen.add(len(harness.send(scan(b"", None, 1000)).result.items))
    assert seen == {0, 100}
    assert reply.revision == 1


def test_a_step_that_takes_all_of_a_drain_leaves_time_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "DRAIN_SIZE", 1)
    harness = OwnerHarness()
    reply = begun(harness, committed(harness))
    read = harness.send(get(b"a"))
    assert not reply.answered
    assert read.answered


def test_a_write_between_the_steps_of_a_batch_that_reads_nothing_is_before_it() -> None:
    harness = OwnerHarness()
    reply = begun(harness, write_many(b"batch"))
    assert harness.send(put(MANY[0], b"other")).answered or harness.news
    harness.settle()
    assert reply.revision == 2
    assert value(harness, MANY[0]) == b"batch"


def test_a_batch_whose_reads_are_changed_between_its_steps_reads_again() -> None:
    harness = OwnerHarness()
    reply = begun(harness, batch(Get(b"a"), *(Get(key) for key in MANY)))
    harness.send(put(b"a", b"new"))
    harness.settle()
    assert reply.result.results[0] is not None


def test_plain_reads_are_served_while_a_commit_is_staged_and_writes_are_not() -> None:
    harness = OwnerHarness()
    reply = begun(harness, committed(harness))
    assert harness.send(get(MANY[0])).result is None
    write = harness.send(put(MANY[0], b"late"))
    read_in = harness.send(put(b"other", b"late"))
    assert not write.answered
    assert not read_in.answered
    harness.settle()
    assert (reply.revision, write.revision) == (1, 2)
    assert value(harness, MANY[0]) == b"late"


def test_a_read_of_a_transaction_waits_for_a_commit_that_is_staged() -> None:
    harness = OwnerHarness()
    commit = committed(harness)
    harness.ask(Open("u"))
    reply = begun(harness, commit)
    read = harness.send(get(MANY[0], "u"))
    assert not read.answered
    harness.settle()
    assert reply.error is None
    assert read.result is not None
    assert harness.ask(Commit("u")).error is None


def test_a_reader_conflicts_with_a_commit_that_takes_steps() -> None:
    harness = OwnerHarness()
    commit = committed(harness)
    harness.ask(Open("u"))
    harness.ask(get(MANY[-1], "u"))
    harness.ask(commit)
    assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)


def test_requests_of_a_transaction_wait_for_its_own_batch() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    reply = begun(harness, batch(*(Set(key, b"1", "") for key in MANY), transaction="t"))
    commit = harness.send(Commit("t"))
    assert not commit.answered
    harness.settle()
    assert reply.error is None
    assert commit.revision == 1
    assert len(keys(harness)) == 100


def test_a_batch_whose_transaction_conflicts_between_its_steps_conflicts() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t"))
    harness.ask(get(b"a", "t"))
    reply = begun(harness, batch(*(Get(key) for key in MANY), transaction="t"))
    harness.send(put(b"a"))
    harness.settle()
    assert isinstance(reply.error, TransactionConflict)
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_transaction_does_not_time_out_while_its_batch_is_under_way() -> None:
    harness = OwnerHarness()
    harness.ask(Open("t", idle_timeout=10))
    reply = begun(harness, batch(*(Get(key) for key in MANY), transaction="t"))
    harness.now += 10
    harness.send(TICK)
    harness.settle()
    assert reply.error is None
    assert harness.ask(Commit("t")).error is None


def test_a_record_that_expires_between_the_steps_of_a_batch_is_seen_once_or_not_at_all() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a", ttl=10))
    gets = [Get(b"a"), *(Get(key) for key in MANY), Get(b"a")]
    reply = begun(harness, batch(*gets))
    harness.now += 10
    harness.settle()
    results = reply.result.results
    assert (results[0] is None) == (results[-1] is None)


def test_a_range_is_deleted_in_steps_and_whole() -> None:
    harness = OwnerHarness()
    harness.ask(write_many())
    reply = begun(harness, delete_range(b"", None))
    while not reply.answered:
        assert len(harness.send(scan(b"", None, 1000)).result.items) == 100
        step(harness)
    harness.settle()
    assert reply.result.results == [100]
    assert keys(harness) == []


def test_a_key_that_is_written_into_a_range_while_it_is_deleted_is_before_or_behind_it() -> None:
    harness = OwnerHarness()
    harness.ask(write_many())
    reply = begun(harness, batch(DeleteRange(b"", None), Range(b"", None)))
    write = harness.send(put(b"k0505"))
    harness.settle()
    deleted, page = reply.result.results
    assert page.items == []
    before = write.revision < reply.revision
    assert (deleted, keys(harness)) == ((101, []) if before else (100, [b"k0505"]))


def test_a_stop_waits_for_all_messages_that_came_before_it() -> None:
    harness = OwnerHarness()
    first, second = begun(harness, write_many()), harness.send(write_many(b"2"))
    harness.send(Stop())
    harness.settle()
    assert (first.revision, second.revision) == (1, 2)
    assert harness.owner.finished


def test_every_message_that_waits_is_answered_when_the_owner_fails() -> None:
    harness = OwnerHarness()
    waiting = [begun(harness, committed(harness))]
    waiting += [harness.send(one) for one in (write_many(), put(b"a"), delete_range(b"", None))]
    harness.owner.fail(OutcomeUnknown("failed"))
    assert all(isinstance(reply.error, OutcomeUnknown) for reply in waiting)


def test_a_flush_that_ends_between_two_steps_answers_its_writers() -> None:
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    commit = committed(harness)
    journal.holding = True
    write = harness.send(put(b"a"))
    reply = begun(harness, commit)
    journal.release()
    while not write.answered:
        step(harness)
    assert not reply.answered
    journal.holding = False
    harness.settle()
    assert reply.revision == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=2, max_size=8))
def test_concurrent_batches_are_serializable(programs: list[tuple[int, int]]) -> None:
    """Each batch adds one to counters that it chooses: its sums are its place among the others."""
    harness = OwnerHarness(settings=Settings(max_request_work=1 << 40))
    replies: list[RecordingReply[Any]] = [RecordingReply() for _ in programs]
    increments = [
        [Increment(b"%d" % ((first + n) % 40), 1) for n in range(length)] for first, length in programs
    ]
    batches = [batch(*one) for one in increments]
    harness.owner.drain(
        harness.now, [(one, reply, UNCOUNTED) for one, reply in zip(batches, replies, strict=True)]
    )
    harness.settle()
    counters: dict[bytes, int] = {}
    in_order = sorted(zip(replies, increments, strict=True), key=lambda one: one[0].revision)
    for reply, one in in_order:
        for operation, result in zip(one, reply.result.results, strict=True):
            counters[operation.key] = counters.get(operation.key, 0) + 1
            assert result == counters[operation.key]
    assert sorted(reply.revision for reply in replies) == list(range(1, len(programs) + 1))
