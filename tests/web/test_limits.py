"""Limits: what is taken is given back, and what is too much is refused."""

import asyncio

import pytest

from kvactor.errors import TooManySubscribers
from kvactor.web.limits import SubscriberLimit
from kvactor.web.waits import Deadlines
from tests.web.conftest import PATIENCE


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
