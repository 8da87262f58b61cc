"""Priority: a transaction that conflicts again and again gets through, and delays others briefly."""

from typing import Any

import pytest

from kvactor.core import transaction_manager
from kvactor.core.memory import Client, Lease, MemoryAccount
from kvactor.core.messages import Commit, Continue, Drop, Open
from kvactor.core.priority import CONFLICTS, QUEUE, TERM
from kvactor.errors import TransactionConflict
from tests.core.builders import get, put, value
from tests.core.harness import OwnerHarness, RecordingReply

#: Milliseconds of `priority_wait`.
WAIT = 50


def conflicted(harness: OwnerHarness, name: str, times: int = CONFLICTS) -> str:
    """Let a transaction and its retries conflict so many times; return the id of the last."""
    last: str | None = None
    for number in range(times):
        one = f"{name}{number}"
        harness.ask(Open(one, retry_of=last))
        harness.ask(get(b"hot", one))
        harness.ask(put(b"hot", b"other"))
        last = one
    assert last is not None
    return last


def with_priority(harness: OwnerHarness, name: str = "t") -> None:
    harness.ask(Open(name, retry_of=conflicted(harness, name)))
    harness.ask(get(b"hot", name))


def test_a_write_waits_until_the_transaction_with_priority_has_committed() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    write = harness.ask(put(b"hot", b"late"))
    assert not write.answered
    assert harness.ask(put(b"cold")).answered
    harness.ask(put(b"hot", b"mine", "t"))
    assert harness.ask(Commit("t")).error is None
    harness.tell(Continue())
    assert write.revision == 6
    assert value(harness, b"hot") == b"late"


def test_a_write_waits_no_longer_than_priority_wait() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    write = harness.ask(put(b"hot"))
    assert harness.owner.scheduler.wake_at == harness.now + WAIT
    harness.now += WAIT - 1
    harness.tell(Continue())
    assert not write.answered
    harness.now += 1
    harness.tell(Continue())
    assert write.error is None
    assert isinstance(harness.ask(Commit("t")).error, TransactionConflict)


def test_a_commit_conflicts_after_it_has_waited_and_the_one_with_priority_commits() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    harness.ask(Open("young"))
    harness.ask(put(b"hot", b"young", "young"))
    commit = harness.ask(Commit("young"))
    assert not commit.answered
    harness.now += WAIT - 1
    harness.ask(get(b"hot", "t"))
    harness.now += 1
    harness.tell(Continue())
    assert isinstance(commit.error, TransactionConflict)
    harness.ask(put(b"hot", b"old", "t"))
    assert harness.ask(Commit("t")).error is None
    assert value(harness, b"hot") == b"old"


def test_priority_ends_with_its_time_however_busy_the_transaction_is() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    for _ in range(TERM * WAIT):
        assert not harness.owner.scheduler._parked
        harness.now += 1
        harness.ask(get(b"hot", "t"))
    assert harness.ask(put(b"hot")).answered


def test_a_transaction_that_is_idle_for_priority_wait_loses_its_priority() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    harness.now += WAIT - 1
    write = harness.ask(put(b"hot"))
    assert not write.answered
    assert harness.owner.scheduler.wake_at == harness.now + 1
    harness.now += 1
    harness.tell(Continue())
    assert write.answered


def test_a_conflicted_transaction_gives_one_try_priority() -> None:
    harness = OwnerHarness()
    last = conflicted(harness, "t")
    harness.ask(Open("t", retry_of=last))
    harness.ask(Drop("t"))
    harness.ask(Open("again", retry_of=last))
    harness.ask(get(b"hot", "again"))
    assert harness.ask(put(b"hot")).answered


def test_more_opens_than_may_wait_for_priority_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_manager, "QUEUE", 1)
    harness = OwnerHarness()
    last = [conflicted(harness, name) for name in "tuv"]
    opens = [harness.ask(Open(name, retry_of=one)) for name, one in zip("tuv", last, strict=True)]
    assert [reply.answered for reply in opens] == [True, False, True]


def test_an_open_waits_for_priority_for_a_bounded_time() -> None:
    harness = OwnerHarness()
    last = [conflicted(harness, name) for name in "tu"]
    opens = [harness.ask(Open(name, retry_of=one)) for name, one in zip("tu", last, strict=True)]
    end = harness.now + QUEUE * WAIT
    holders = iter(range(1000))
    while harness.now < end:
        assert not opens[1].answered
        # Somebody always has it.
        harness.owner._keys.priority._until = harness.now + WAIT
        harness.ask(get(b"k%d" % next(holders), "t"))
        harness.now += WAIT - 1
    harness.tell(Continue())
    assert opens[1].answered


def test_the_owner_wakes_for_an_open_that_waits_as_soon_as_for_a_write() -> None:
    """A timer that is set for one is early enough for the other."""
    harness = OwnerHarness()
    last = [conflicted(harness, name) for name in "tu"]
    for name, one in zip("tu", last, strict=True):
        harness.send(Open(name, retry_of=one))
    assert harness.owner.scheduler.wake_at <= harness.now + WAIT


def test_priority_goes_to_another_client_before_it_comes_back() -> None:
    harness = OwnerHarness()
    account = MemoryAccount(1 << 30)
    greedy, modest = account.connected("greedy"), account.connected("modest")
    last = {name: conflicted(harness, name) for name in "tuv"}

    def opening(name: str, client: Client) -> RecordingReply[Any]:
        reply = RecordingReply[Any]()
        message = Open(name, retry_of=last[name])
        harness.owner.drain(harness.now, [(message, reply, Lease(account, client))])
        harness.settle()
        return reply

    assert opening("t", greedy).answered
    again, other = opening("u", greedy), opening("v", modest)
    harness.ask(Drop("t"))
    assert (again.answered, other.answered) == (False, True)
    harness.ask(Drop("v"))
    assert again.answered


def test_a_first_try_and_an_unknown_retry_have_no_priority() -> None:
    harness = OwnerHarness()
    too_few = conflicted(harness, "v", CONFLICTS - 1)
    for one, retry_of in (("t", None), ("u", "unknown"), ("v", too_few)):
        harness.ask(Open(one, retry_of=retry_of))
        harness.ask(get(b"hot", one))
    assert harness.ask(put(b"hot")).answered


def test_a_commit_ends_the_row_of_conflicts() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    harness.ask(Commit("t"))
    harness.ask(Open("again", retry_of="t"))
    harness.ask(get(b"hot", "again"))
    assert harness.ask(put(b"hot")).answered


def test_retries_open_one_after_the_other_in_the_order_in_which_they_came() -> None:
    harness = OwnerHarness()
    last = [conflicted(harness, name) for name in "tuv"]
    opens = [harness.ask(Open(name, retry_of=one)) for name, one in zip("tuv", last, strict=True)]
    assert [reply.answered for reply in opens] == [True, False, False]
    harness.ask(Drop("t"))
    harness.tell(Continue())
    assert [reply.answered for reply in opens] == [True, True, False]
    harness.ask(Commit("u"))
    harness.tell(Continue())
    assert opens[2].answered


def test_a_retry_whose_client_has_gone_does_not_open() -> None:
    harness = OwnerHarness()
    last = [conflicted(harness, name) for name in "tuv"]
    opens = [harness.ask(Open(name, retry_of=one)) for name, one in zip("tuv", last, strict=True)]
    opens[1].cancelled = True
    harness.ask(Drop("t"))
    harness.tell(Continue())
    assert opens[2].answered


def test_reading_does_not_wait() -> None:
    harness = OwnerHarness()
    with_priority(harness)
    harness.ask(put(b"hot"))
    assert harness.ask(get(b"hot")).answered
    harness.ask(Open("reader"))
    assert harness.ask(get(b"hot", "reader")).answered
    assert harness.ask(Commit("reader")).error is None
