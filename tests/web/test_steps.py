"""Work in steps, and the turnstile that lets one step of all work through in a turn of the loop."""

import asyncio
from typing import Any

import pytest

from kvactor.core.memory import Client, Lease, MemoryAccount
from kvactor.errors import Overloaded
from kvactor.web.steps import Steps, Turnstile


class Turns:
    """Counts what happens in each turn of the loop."""

    def __init__(self) -> None:
        self.counts = [0]

    def work(self, steps: int) -> Steps[int]:
        for _ in range(steps):
            self.counts[-1] += 1
            yield None
        return steps

    async def until(self, task: "asyncio.Future[Any]") -> None:
        while not task.done():
            await asyncio.sleep(0)
            self.counts.append(0)


async def test_of_all_work_one_step_is_done_in_a_turn_and_in_order() -> None:
    turns, turnstile = Turns(), Turnstile()
    work = asyncio.gather(*(turnstile.take(turns.work(5)) for _ in range(20)))
    await turns.until(work)
    assert await work == [5] * 20
    assert max(turns.counts) == 1
    assert sum(turns.counts) == 100


async def test_nobody_waits_for_a_turn_that_nobody_else_has_had() -> None:
    turnstile = Turnstile()
    assert turnstile.enter() is None
    turn = turnstile.enter()
    assert turn is not None
    await turn


async def test_who_has_gone_away_takes_nobodys_turn() -> None:
    turnstile = Turnstile()
    assert turnstile.enter() is None
    gone, here = turnstile.enter(), turnstile.enter()
    assert gone is not None
    assert here is not None
    gone.cancel()
    await here


async def test_what_a_step_takes_is_counted_and_refused_if_it_is_not_left() -> None:
    account = MemoryAccount(1000)
    lease, others = Lease(account, Client()), Lease(account, Client())
    others.acquire(100)

    def work() -> Steps[int]:
        yield 700
        yield lease.size
        return lease.size

    with pytest.raises(Overloaded):
        await Turnstile().take(work(), lease)
    assert lease.size == 700
    others.release()
    lease.release()
    assert await Turnstile().take(work(), lease) == 1400
