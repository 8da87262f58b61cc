"""The actor: where replies go, and the clock that it gives the owner."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvactor.actor import STATUS_PLACES, StoreActor
from kvactor.core.messages import Answer, Execute, Status
from kvactor.core.operations import Delete
from kvactor.core.protocols import StorageFailed
from kvactor.errors import KeyNotFound, OutcomeUnknown, Overloaded, Stopping
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.storage.memory import MemoryTree
from tests.core.builders import put
from tests.core.harness import HeldJournal

#: Seconds after which what is waited for has failed to happen.
PATIENCE = 10

PUT = put(b"key")
MISSING = Execute(Delete(b"missing", must_exist=True))


class ListReply:
    """A reply that is no future."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def set_result(self, result: Answer[Any]) -> None:
        self.outcomes.append(result)

    def set_exception(self, error: BaseException) -> None:
        self.outcomes.append(error)

    def done(self) -> bool:
        return bool(self.outcomes)


class BrokenReply(ListReply):
    """A reply that cannot take its outcome."""

    def set_result(self, result: Answer[Any]) -> None:
        super().set_result(result)
        raise ZeroDivisionError("cannot be encoded")

    def set_exception(self, error: BaseException) -> None:
        super().set_exception(error)
        raise ZeroDivisionError("cannot be encoded")


@pytest.fixture
def journal() -> HeldJournal:
    return HeldJournal(holding=False)


@pytest.fixture
async def actor(journal: HeldJournal) -> AsyncIterator[StoreActor]:
    actor = StoreActor(Storage(journal, MemoryTree()), Settings(mailbox_size=4))
    await actor.start()
    yield actor
    journal.holding = False
    journal.release()
    await actor.stop()


# -- submit --


async def test_submit_gives_a_reply_that_is_no_future_its_result_or_its_error(
    actor: StoreActor,
) -> None:
    stored, missing = ListReply(), ListReply()
    actor.submit(PUT, stored)
    actor.submit(MISSING, missing)
    assert (await actor.ask(PUT)).revision == 2
    assert [outcome.revision for outcome in stored.outcomes] == [1]
    assert [type(outcome) for outcome in missing.outcomes] == [KeyNotFound]


async def test_submit_to_a_full_mailbox_or_a_stopped_actor_raises_and_leaves_the_reply_alone(
    actor: StoreActor,
) -> None:
    replies = [ListReply() for _ in range(6)]
    for reply in replies[:4]:
        actor.submit(PUT, reply)
    with pytest.raises(Overloaded):
        actor.submit(PUT, replies[4])
    await actor.stop()
    with pytest.raises(Stopping):
        actor.submit(PUT, replies[5])
    assert [len(reply.outcomes) for reply in replies] == [1, 1, 1, 1, 0, 0]


async def test_a_full_mailbox_has_some_places_for_status_alone(
    actor: StoreActor,
) -> None:
    writes = [actor.ask(PUT) for _ in range(4)]
    reports = [actor.ask(Status()) for _ in range(STATUS_PLACES)]
    for message in (Status(), PUT):
        with pytest.raises(Overloaded):
            actor.submit(message, ListReply())
    await asyncio.gather(*writes, *reports)
    assert (await actor.ask(PUT)).revision == 5


async def test_ask_before_the_start_raises_stopping(journal: HeldJournal) -> None:
    with pytest.raises(Stopping):
        StoreActor(Storage(journal, MemoryTree()), Settings()).ask(PUT)


@pytest.mark.parametrize("holding", [False, True], ids=["at once", "held"])
@pytest.mark.parametrize("message", [PUT, MISSING], ids=["result", "error"])
async def test_a_reply_that_raises_is_logged_and_neither_the_owner_nor_other_replies_fail(
    actor: StoreActor,
    journal: HeldJournal,
    caplog: pytest.LogCaptureFixture,
    message: Any,
    holding: bool,
) -> None:
    journal.holding = holding
    broken = BrokenReply()
    first = actor.ask(PUT)
    actor.submit(message, broken)
    second = actor.ask(PUT)
    async with asyncio.timeout(PATIENCE):
        await actor.ask(Status())
        journal.holding = False
        journal.release()
        assert [(await first).revision, (await second).revision] == [1, 2 + (message is PUT)]
    assert len(broken.outcomes) == 1
    assert not actor.done.done()
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_a_reply_that_raises_when_the_server_fails_does_not_keep_others_from_their_error(
    actor: StoreActor, journal: HeldJournal
) -> None:
    journal.holding = True
    broken, other = BrokenReply(), ListReply()
    actor.submit(PUT, broken)
    actor.submit(PUT, other)
    async with asyncio.timeout(PATIENCE):
        await actor.ask(Status())
        behind = [BrokenReply(), ListReply()]
        journal.break_down(OSError(5, "Input/output error"))
        for reply in behind:
            actor.submit(PUT, reply)
        await asyncio.wait({actor.done})
    assert isinstance(actor.done.exception(), StorageFailed)
    outcomes = [reply.outcomes for reply in (broken, other, *behind)]
    assert [[type(outcome) for outcome in one] for one in outcomes] == [[OutcomeUnknown]] * 4


# -- ticks --


class UncertainJournal(HeldJournal):
    """A journal whose free space cannot be read while `error` is set."""

    def __init__(self) -> None:
        super().__init__(holding=False)
        self.free = 1 << 40
        self.error: OSError | None = None
        self.readings = 0

    def free_space(self) -> int:
        self.readings += 1
        if self.error is not None:
            raise self.error
        return self.free


async def test_ticks_go_on_with_the_last_known_free_space_when_it_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kvactor.actor.TICK", 0.001)
    caplog.set_level(logging.INFO)
    journal = UncertainJournal()
    now = 1_000_000
    actor = StoreActor(Storage(journal, MemoryTree()), Settings(), lambda: now)

    async def ticks() -> None:
        readings = journal.readings
        while journal.readings < readings + 3:
            await asyncio.sleep(0.001)

    async def free() -> int:
        return (await actor.ask(Status())).result.free_space

    await actor.start()
    async with asyncio.timeout(PATIENCE):
        await actor.ask(put(b"key", ttl=1000))
        await ticks()
        before = await free()
        assert (1 << 40) - (1 << 20) < before < 1 << 40
        journal.error = OSError(5, "Input/output error")
        await ticks()
        assert await free() == before
        now += 2000
        while (await actor.ask(Status())).result.keys:
            await asyncio.sleep(0.001)
        known = await free()
        await ticks()
        assert await free() == known, "what was written since is free again"
        journal.error, journal.free = None, 1 << 39
        await ticks()
        assert await free() < 1 << 39
        await actor.stop()
    lost = "the free space of the disk cannot be read, the last known figure stays: "
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("WARNING", f"{lost}[Errno 5] Input/output error"),
        ("INFO", "the free space of the disk can be read again"),
    ]


async def test_the_log_tells_when_writes_are_refused_and_when_they_are_accepted_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kvactor.actor.TICK", 0.001)
    caplog.set_level(logging.INFO)
    journal = UncertainJournal()
    journal.free = 1000
    actor = StoreActor(Storage(journal, MemoryTree()), Settings(data_dir="place"))

    def told() -> list[str]:
        return [one.levelname for one in caplog.records]

    await actor.start()
    assert told() == ["WARNING"]
    assert "writes are refused (507)" in caplog.text
    assert "where place is" in caplog.text
    async with asyncio.timeout(PATIENCE):
        while journal.readings < 4:
            await asyncio.sleep(0.001)
        assert told() == ["WARNING"]
        journal.free = 1 << 40
        while told() != ["WARNING", "INFO"]:
            await asyncio.sleep(0.001)
        journal.free = 1000
        while told() != ["WARNING", "INFO", "WARNING"]:
            await asyncio.sleep(0.001)
        await actor.stop()
