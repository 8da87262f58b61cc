"""Limits: what is taken is given back, and what is too much is refused."""

import asyncio

import pytest

from kvactor.errors import Overloaded, TooManySubscribers
from kvactor.web.limits import SMALL, Deadlines, InFlightBudget, Lease, SubscriberLimit
from tests.web.conftest import PATIENCE


def test_a_lease_that_is_released_leaves_nothing_in_use() -> None:
    budget = InFlightBudget(100)
    lease = Lease(budget)
    lease.acquire(30)
    lease.acquire(20)
    assert (lease.size, budget.used) == (50, 50)
    lease.release()
    lease.release()
    assert (lease.size, budget.used) == (0, 0)


def test_a_lease_beyond_the_budget_is_refused_and_takes_nothing() -> None:
    budget = InFlightBudget(100)
    first, second = Lease(budget), Lease(budget)
    first.acquire(60)
    second.acquire(40)
    with pytest.raises(Overloaded):
        second.acquire(1)
    with pytest.raises(Overloaded):
        second.check(1)
    assert budget.used == 100
    first.release()
    second.acquire(60)
    assert budget.used == 100


def test_a_lease_that_is_the_only_one_is_never_refused() -> None:
    budget = InFlightBudget(100)
    lease = Lease(budget)
    lease.acquire(150)
    lease.acquire(150)
    assert budget.used == 300


def test_a_lease_that_may_not_refuse_goes_beyond_the_budget() -> None:
    budget = InFlightBudget(100)
    Lease(budget).acquire(100)
    Lease(budget).acquire(50, refuse=False)
    assert budget.used == 150


def test_a_page_has_half_of_what_is_left_and_never_nothing() -> None:
    budget = InFlightBudget(10 * SMALL)
    assert budget.share(9 * SMALL) == 9 * SMALL
    lease = Lease(budget)
    lease.acquire(2 * SMALL)
    assert budget.share(9 * SMALL) == 4 * SMALL
    lease.acquire(20 * SMALL)
    assert budget.share(9 * SMALL) == SMALL


def test_a_subscriber_over_the_limit_is_refused_until_another_leaves() -> None:
    limit = SubscriberLimit(1)
    with limit.subscribed():
        with pytest.raises(TooManySubscribers), limit.subscribed():
            pass
        assert limit.count == 1
    with limit.subscribed():
        assert limit.count == 1
    assert limit.count == 0


async def test_a_stop_ends_waits_that_have_begun_and_later_ones() -> None:
    deadlines = Deadlines()

    async def wait() -> None:
        async with deadlines.limit(None):
            await asyncio.Event().wait()

    begun = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    deadlines.stop()
    waits = {begun, asyncio.ensure_future(wait())}
    ended, _ = await asyncio.wait(waits, timeout=PATIENCE)
    assert ended == waits
    assert all(isinstance(one.exception(), TimeoutError) for one in ended)
