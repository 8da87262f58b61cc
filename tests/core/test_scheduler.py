"""Whose message comes next, and what waiting messages are told when the owner fails or stops."""

from typing import Any

import pytest

from kvactor.core import scheduler
from kvactor.core.executor import TEXT_SHOWN
from kvactor.core.memory import UNCOUNTED, Lease, MemoryAccount
from kvactor.core.messages import SHARED, Begin, Changes, Commit, Drop, Execute, Message, Open, Stop
from kvactor.core.operations import Get, Set
from kvactor.core.store import Store
from kvactor.errors import OutcomeUnknown
from kvactor.settings import Settings
from tests.core.builders import TICK, batch, get, put, scan, value
from tests.core.harness import OwnerHarness, RecordingReply
from tests.core.test_priority import conflicted, with_priority


class Clients:
    """Clients of an owner, each with an address of its own."""

    def __init__(self, harness: OwnerHarness) -> None:
        self.account = MemoryAccount(1 << 30)
        self._harness = harness

    def lease(self, address: str) -> Lease:
        return Lease(self.account, self.account.connected(address))

    def send(self, *messages: tuple[str, Message[Any]]) -> list[RecordingReply[Any]]:
        """Give the owner messages of clients, by address, in one drain."""
        replies = [RecordingReply[Any]() for _ in messages]
        envelopes = [
            (message, reply, self.lease(address))
            for (address, message), reply in zip(messages, replies, strict=True)
        ]
        self._harness.owner.drain(self._harness.now, envelopes)
        return replies


def full(monkeypatch: pytest.MonkeyPatch) -> tuple[OwnerHarness, Clients]:
    """An owner whose drains take one message of a client's."""
    harness = OwnerHarness()
    harness.ask(put(b"k"))
    monkeypatch.setattr(scheduler, "DRAIN_SIZE", 1)
    return harness, Clients(harness)


def test_a_message_that_waits_for_its_turn_is_told_when_the_owner_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness, clients = full(monkeypatch)
    _, waiting = clients.send(("a", get(b"k")), ("b", get(b"k")))
    assert not waiting.answered
    harness.owner.fail(OutcomeUnknown("broken"))
    assert isinstance(waiting.error, OutcomeUnknown)


def test_a_message_is_told_when_its_own_handling_in_a_later_drain_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness, clients = full(monkeypatch)
    _, waiting = clients.send(("a", get(b"k")), ("b", put(b"k")))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Store, "stage", broken)
    with pytest.raises(ZeroDivisionError):
        harness.settle()
    harness.owner.fail(OutcomeUnknown("broken"))
    assert isinstance(waiting.error, OutcomeUnknown)


def test_clients_are_forgotten_once_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, clients = full(monkeypatch)
    replies = clients.send(*((f"{number}", scan(b"", None, 10)) for number in range(10)))
    harness.settle()
    assert all(reply.answered for reply in replies)
    assert not harness.owner.scheduler._turns._flows


def test_a_stop_ends_priority_and_all_that_waits_for_it_goes_on() -> None:
    harness = OwnerHarness()
    last = [conflicted(harness, name) for name in "tuvw"]
    opens = [harness.send(Open(name, retry_of=one)) for name, one in zip("tuvw", last, strict=True)]
    harness.ask(get(b"hot", "t"))
    parked = harness.send(put(b"hot"))
    assert [one.answered for one in (*opens, parked)] == [True, False, False, False, False]
    harness.tell(Stop())
    assert all(one.answered for one in (*opens, parked))
    assert harness.owner.finished


def test_a_stop_begins_once_what_was_accepted_before_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "STEP_SIZE", 20)
    harness = OwnerHarness()
    harness.ask(Begin(SHARED))
    many = (Set(b"k%d" % number, b"1", "") for number in range(100))
    harness.send(batch(*many, transaction=SHARED))
    commit = harness.send(Commit(SHARED))
    assert not commit.answered
    harness.tell(Stop())
    assert commit.error is None
    assert value(harness, b"k0") == b"1"


def test_when_the_transaction_with_priority_ends_others_go_on_without_another_message() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    harness.settle()
    parked = harness.send(put(b"hot"))
    assert not parked.answered
    harness.ask(Drop("t"))
    assert parked.answered


def test_when_the_transaction_with_priority_ends_in_its_turn_others_go_on_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = OwnerHarness()
    with_priority(harness)
    harness.settle()
    parked = harness.send(put(b"hot"))
    monkeypatch.setattr(scheduler, "DRAIN_SIZE", 1)
    _, ended = Clients(harness).send(("a", get(b"k")), ("b", Drop("t")))
    assert not ended.answered
    harness.settle()
    assert ended.answered
    assert not parked.answered
    assert harness.owner.scheduler.wake_at <= harness.now
    harness.tell(TICK)
    assert parked.answered


def test_what_a_batch_has_read_before_it_waited_is_not_counted_twice() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"large", bytes(100_000)))
    with_priority(harness)
    clients = Clients(harness)
    lease, reply = clients.lease("a"), RecordingReply[Any]()
    message = batch(Get(b"large"), Set(b"hot", b"1", ""))
    harness.owner.drain(harness.now, [(message, reply, lease)])
    assert not reply.answered
    assert lease.size == 0
    harness.now = harness.owner.scheduler.wake_at
    harness.tell(TICK)
    assert reply.answered
    assert TEXT_SHOWN * 100_000 < lease.size < TEXT_SHOWN * 101_000


def test_a_batch_that_runs_again_alone_still_counts_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "STEP_SIZE", 20)
    harness = OwnerHarness()
    clients = Clients(harness)
    lease, reply = clients.lease("a"), RecordingReply[Any]()
    lease.acquire(4_000_000)
    many = (Set(b"k%d" % number, b"1", "") for number in range(100))
    harness.owner.drain(harness.now, [(batch(Get(b"hot"), *many), reply, lease)])
    assert not reply.answered
    harness.send(put(b"hot"))
    while harness.news:
        harness.owner.drain(harness.now, [(harness.news.pop(0), None, UNCOUNTED)])
        assert lease.size >= 4_000_000
    assert reply.answered
    assert value(harness, b"k0") == b"1"


def test_a_tick_leaves_a_shared_transaction_alone_that_is_being_committed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduler, "STEP_SIZE", 20)
    harness = OwnerHarness(
        settings=Settings(shared_transaction_idle_timeout=0.01, shared_transaction_warning=0.5)
    )
    harness.ask(Begin(SHARED))
    for number in range(1000):
        harness.ask(Execute(Set(b"k%d" % number, b"1", ""), SHARED))
    follower = harness.send(Changes(harness.owner.revision, 1, wait=True))
    assert len(harness.owner._feed) == 1
    follower.cancelled = True
    reply = harness.send(Commit(SHARED))
    assert not reply.answered
    harness.now += 1000
    harness.owner.drain(harness.now, [(TICK, None, UNCOUNTED)])
    # It has gone on with everything else.
    assert len(harness.owner._feed) == 0
    harness.settle()
    assert reply.error is None
    assert value(harness, b"k999") == b"1"
    assert not caplog.records


@pytest.mark.parametrize(
    "message",
    [
        batch(Get(b"a"), transaction="none"),
        Commit("none"),
        Execute(Get(b""), "none"),
        Execute(Set(b"", b"", "")),
    ],
    ids=["batch", "commit", "transaction", "key"],
)
def test_an_error_leads_to_nothing_of_its_request(message: Message[Any]) -> None:
    error = OwnerHarness().ask(message).error
    assert error is not None
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
