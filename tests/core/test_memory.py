"""The account of memory: what is taken is given back, and what is too much is refused."""

from typing import Any

import pytest

from kvactor.core.memory import Client, Lease, MemoryAccount
from kvactor.core.messages import Commit, Drop, Message, Open
from kvactor.core.operations import Get
from kvactor.errors import Overloaded
from tests.core.builders import batch, get, harness_with, put, value
from tests.core.harness import OwnerHarness, RecordingReply


def test_a_lease_that_is_released_leaves_nothing_in_use() -> None:
    account = MemoryAccount(100)
    lease = Lease(account, Client())
    lease.acquire(30)
    lease.acquire(20)
    assert (lease.size, account.used) == (50, 50)
    lease.release()
    lease.release()
    assert (lease.size, account.used) == (0, 0)


def test_a_lease_beyond_the_account_is_refused_and_takes_nothing() -> None:
    account = MemoryAccount(100)
    first, second = Lease(account, Client()), Lease(account, Client())
    first.acquire(60)
    second.acquire(40)
    with pytest.raises(Overloaded):
        second.acquire(1)
    with pytest.raises(Overloaded):
        second.check(1)
    assert account.used == 100
    first.release()
    second.acquire(60)
    assert account.used == 100


def test_a_lease_that_is_the_only_one_is_never_refused() -> None:
    account = MemoryAccount(100)
    lease = Lease(account, Client())
    lease.acquire(150)
    lease.acquire(150)
    assert account.used == 300


def test_a_lease_is_resized_up_to_what_is_left_and_down_always() -> None:
    account = MemoryAccount(100)
    one, other = Lease(account, Client()), Lease(account, Client())
    other.acquire(50)
    one.resize(50)
    with pytest.raises(Overloaded):
        one.resize(51)
    one.resize(10)
    assert (one.size, account.used) == (10, 60)


def test_a_lease_that_may_not_refuse_goes_beyond_the_account() -> None:
    account = MemoryAccount(100)
    Lease(account, Client()).acquire(100)
    Lease(account, Client()).acquire(50, refuse=False)
    assert account.used == 150


def test_a_page_has_half_of_what_is_left_and_never_nothing() -> None:
    account = MemoryAccount(100)
    lease = Lease(account, Client())
    assert lease.share(90, 10) == 90
    lease.acquire(20)
    assert lease.share(90, 10) == 40
    lease.acquire(200)
    assert lease.share(90, 10) == 10


def test_a_client_takes_at_most_half_while_another_client_is_connected() -> None:
    account = MemoryAccount(100)
    one, other = account.connected("one"), account.connected("other")
    lease = Lease(account, one)
    lease.acquire(50)
    with pytest.raises(Overloaded):
        Lease(account, one).acquire(1)
    Lease(account, other).acquire(50)


def test_a_client_takes_all_while_no_other_client_is_connected() -> None:
    account = MemoryAccount(100)
    one = account.connected("one")
    account.connected("other")
    account.disconnected("other")
    Lease(account, one).acquire(50)
    Lease(account, one).acquire(50)
    with pytest.raises(Overloaded):
        Lease(account, one).acquire(1)


def test_a_client_that_comes_back_still_holds_what_it_held() -> None:
    account = MemoryAccount(100)
    account.connected("other")
    lease = Lease(account, account.connected("one"))
    lease.acquire(50)
    account.disconnected("one")
    again = account.connected("one")
    with pytest.raises(Overloaded):
        Lease(account, again).acquire(1)
    lease.release()
    Lease(account, again).acquire(50)


def test_clients_that_have_gone_are_forgotten_in_the_end() -> None:
    account = MemoryAccount(10_000)
    for number in range(1000):
        lease = Lease(account, account.connected(str(number)))
        lease.acquire(1)
        account.disconnected(str(number))
        lease.close()
    assert account.known <= 101


def test_a_closed_lease_takes_nothing() -> None:
    account = MemoryAccount(100)
    lease = Lease(account, Client())
    lease.acquire(30)
    lease.close()
    lease.acquire(40)
    lease.resize(10)
    assert (lease.size, account.used, lease.client.used) == (0, 0, 0)


# -- in the owner --


def counted(harness: OwnerHarness, account: MemoryAccount, message: Message[Any]) -> Any:
    """The outcome of a message whose lease is of one client, and what the lease holds then."""
    reply: RecordingReply[Any] = RecordingReply()
    lease = Lease(account, account.connected("one"))
    harness.owner.drain(harness.now, [(message, reply, lease)])
    harness.settle()
    return reply, lease.size


def test_a_result_is_counted_before_it_is_given() -> None:
    harness, account = harness_with(), MemoryAccount(300_000)
    harness.ask(put(b"a", bytes(100_000)))
    first, held = counted(harness, account, get(b"a"))
    assert first.error is None
    assert held > 100_000
    counted(harness, account, get(b"a"))
    third, held = counted(harness, account, get(b"a"))
    assert isinstance(third.error, Overloaded)
    assert held == 0


def test_results_of_a_batch_are_counted_and_one_that_is_refused_does_nothing() -> None:
    harness, account = harness_with(), MemoryAccount(300_000)
    harness.ask(put(b"a", bytes(100_000)))
    counted(harness, account, get(b"a"))
    refused, _ = counted(harness, account, batch(put(b"b"), Get(b"a"), Get(b"a"), Get(b"a")))
    assert isinstance(refused.error, Overloaded)
    assert value(harness, b"b") is None


def test_a_transaction_is_counted_until_it_ends() -> None:
    harness, account = harness_with(), MemoryAccount(300_000)
    for name, end in (("t", Commit("t")), ("u", Drop("u")), ("v", None)):
        counted(harness, account, Open(name))
        counted(harness, account, get(b"seen", name))
        counted(harness, account, put(b"a", bytes(100_000), name))
        assert account.used > 100_000
        if end is None:
            harness.ask(put(b"seen"))  # it conflicts, and drops its writes
        else:
            counted(harness, account, end)
        assert account.used < 1000


def test_transactions_together_are_bounded() -> None:
    harness, account = harness_with(), MemoryAccount(300_000)
    for name in "tuv":
        counted(harness, account, Open(name))
    replies = [counted(harness, account, put(b"a", bytes(100_000), name))[0] for name in "tuv"]
    assert [type(reply.error) for reply in replies] == [type(None), type(None), Overloaded]
    counted(harness, account, Drop("t"))
    reply, _ = counted(harness, account, put(b"a", bytes(100_000), "v"))
    assert reply.error is None
