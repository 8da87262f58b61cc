"""Requests during a flush: staged writes are invisible, clients may go away, and requests over the
limit are refused.

The journal holds a flush until the test releases it, so each test is exactly in the middle of one.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvactor.actor import StoreActor
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.storage.memory import MemoryTree
from tests.core.harness import HeldJournal
from tests.web.conftest import PATIENCE, Connection, Server, message


async def reached(journal: HeldJournal) -> None:
    """Wait until a flush is under way."""
    async with asyncio.timeout(PATIENCE):
        while not journal.pending:
            await asyncio.sleep(0)


def release(journal: HeldJournal) -> None:
    """Let the flush that is under way end, and hold no other."""
    journal.holding = False

    journal.release()


@pytest.fixture
def journal() -> HeldJournal:
    return HeldJournal(holding=False)


@pytest.fixture
def storage(journal: HeldJournal) -> Storage:
    return Storage(journal, MemoryTree())


@pytest.fixture(autouse=True)
async def released(server: Server, journal: HeldJournal) -> AsyncIterator[None]:
    """Let the server stop, even if the test has failed before its release."""
    yield
    release(journal)


def set_a(value: str, within: str = "") -> bytes:
    headers = {"Kvactor-Transaction": within} if within else {}
    return message("POST", "/set", b'{"key": "a", "value": "%b"}' % value.encode(), headers)


async def status_and_json(connection: Connection) -> tuple[int, object]:
    answer = await connection.answer()
    assert answer is not None
    return answer.status, answer.json()


async def opened(server: Server) -> str:
    id_: str = (await server.request("POST", "/v1/transactions")).json()["id"]
    return id_


# -- nobody sees too early (P3) --


async def test_a_value_is_invisible_until_it_is_durable_and_reads_do_not_wait(
    server: Server, journal: HeldJournal
) -> None:
    await server.set("a", "old")
    await server.set("b", "other")
    id_ = await opened(server)
    journal.holding = True
    writer = await server.send(set_a("new"))
    await reached(journal)
    assert (await server.get("b")).json()["value"] == "other"
    read = await server.get("a")
    assert (read.json()["value"], read.revision) == ("old", 2)
    assert (await server.get("b", {"Kvactor-Transaction": id_})).json()["value"] == "other"
    # A transaction's read of what is being written is decided on the new value, so it has to wait.
    reader = await server.send(message("GET", "/get/a", None, {"Kvactor-Transaction": id_}))
    status = (await server.request("GET", "/v1/status")).json()
    assert (status["revision"], status["storage"]["staged"], status["mailbox"]["held"]) == (2, 1, 2)
    release(journal)
    assert await status_and_json(writer) == (200, {"status": "ok"})
    assert await status_and_json(reader) == (200, {"key": "a", "value": "new"})
    read = await server.get("a")
    assert (read.json()["value"], read.revision) == ("new", 3)


async def test_an_error_that_depends_on_a_staged_write_waits_for_its_flush(
    server: Server, journal: HeldJournal
) -> None:
    await server.set("a", "old")
    journal.holding = True
    first = await server.send(message("DELETE", "/delete/a"))
    await reached(journal)
    second = await server.send(message("DELETE", "/delete/a"))
    assert (await server.get("a")).json()["value"] == "old"
    assert (await server.request("GET", "/v1/status")).json()["mailbox"]["held"] == 2
    release(journal)
    assert await status_and_json(first) == (200, {"status": "deleted"})
    assert await status_and_json(second) == (404, {"error": "Key not found"})


async def test_writes_during_a_flush_share_the_next_flush_in_order(
    server: Server, journal: HeldJournal
) -> None:
    journal.holding = True
    writers = [await server.send(set_a("0"))]
    await reached(journal)
    for number in range(1, 5):
        writers.append(await server.send(set_a(f"{number}")))
        # The owner has it when it has answered who came after it.
        assert (await server.request("GET", "/readyz")).status == 200
    release(journal)
    answers = [await writer.answer() for writer in writers]
    assert [answer.revision for answer in answers if answer is not None] == [1, 2, 3, 4, 5]
    assert journal.flushes == [1, 4]
    assert (await server.get("a")).json()["value"] == "4"


async def test_a_response_never_shows_a_revision_that_is_not_durable(
    server: Server, journal: HeldJournal
) -> None:
    id_ = await opened(server)
    journal.holding = True
    await server.send(set_a("new"))
    await reached(journal)
    await server.send(message("POST", "/set", b'{"key": "b", "value": 1}'))
    assert (await server.request("GET", "/v1/status")).json()["storage"]["staged"] == 2
    reader = await server.send(message("GET", "/get/a", None, {"Kvactor-Transaction": id_}))
    assert (await server.request("GET", "/v1/status")).json()["mailbox"]["held"] == 3
    journal.release()
    answer = await reader.answer()
    assert answer is not None
    assert answer.json() == {"key": "a", "value": "new"}
    await reached(journal)
    assert (answer.revision, (await server.get("b")).revision) == (1, 1)


# -- clients that go away (P7) --


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("step", ["set", "delete", "shared commit", "isolated commit", "get"])
async def test_a_request_is_done_whole_when_its_client_goes_away(
    server: Server, journal: HeldJournal, actor: StoreActor, step: str, ending: str
) -> None:
    await server.set("a", "old")
    id_ = await opened(server)
    header = {"Kvactor-Transaction": id_}
    match step:
        case "set":
            data, after = set_a("new"), ["new", None]
        case "delete":
            data, after = message("DELETE", "/delete/a"), [None, None]
        case "shared commit":
            await server.request("POST", "/begin")
            await server.set("a", "new")
            await server.set("b", "new")
            data, after = message("POST", "/commit"), ["new", "new"]
        case "isolated commit":
            await server.set("a", "new", header)
            await server.set("b", "new", header)
            data, after = message("POST", "/commit", None, header), ["new", "new"]
        case _:
            data, after = message("GET", "/get/a", None, header), ["other", None]
    journal.holding = True
    if step == "get":
        await server.send(set_a("other"))
        await reached(journal)
    gone = await server.send(data)
    await reached(journal)
    assert (await server.request("GET", "/readyz")).status == 200
    await (gone.close() if ending == "close" else gone.reset())
    # The server has noticed when it has answered a connection that was made after that.
    assert (await server.get("a")).json()["value"] == "old"
    assert (await server.get("b")).status == 404
    release(journal)
    assert await server.proves_itself() == 3
    answers = [(await server.get(key)).json().get("value") for key in ("a", "b")]
    assert answers == after
    assert not actor.done.done()


async def test_a_commit_whose_response_was_lost_may_be_repeated(
    server: Server, journal: HeldJournal
) -> None:
    id_ = await opened(server)
    await server.set("a", 1, {"Kvactor-Transaction": id_})
    journal.holding = True
    lost = await server.send(message("POST", f"/v1/transactions/{id_}/commit"))
    await reached(journal)
    await lost.reset()
    again = await server.send(message("POST", f"/v1/transactions/{id_}/commit"))
    assert (await server.get("a")).status == 404
    assert (await server.request("GET", "/v1/status")).json()["mailbox"]["held"] == 2
    release(journal)
    assert await status_and_json(again) == (200, {"id": id_, "depth": 0})
    assert (await server.get("a")).revision == 1


# -- more than can wait (P8) --


@pytest.mark.parametrize("settings", [Settings(mailbox_size=3)])
async def test_a_request_to_a_full_mailbox_gets_503_but_the_metrics_are_there(
    server: Server, journal: HeldJournal
) -> None:
    journal.holding = True
    writers = []
    for number in range(3):
        assert (await server.request("GET", "/readyz")).status == 200
        writers.append(await server.send(set_a(f"{number}")))
        await reached(journal)
    for method, target, body in (
        ("POST", "/set", {"key": "a", "value": "refused"}),
        ("GET", "/get/a", None),
    ):
        refused = await server.request(method, target, body)
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert set(refused.json()) == {"error"}
    for method, target in (("POST", "/v1/transactions"), ("GET", "/readyz")):
        refused = await server.request(method, target)
        assert (refused.status, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["Retry-After"]) > 0
    assert (await server.request("GET", "/healthz")).status == 200
    assert (await server.request("GET", "/v1/status")).json()["mailbox"] == {"waiting": 3, "held": 3}
    metrics = await server.request("GET", "/metrics")
    assert b"\nkvactor_mailbox_waiting 3.0\n" in metrics.body
    release(journal)
    for writer in writers:
        assert await status_and_json(writer) == (200, {"status": "ok"})
    assert (await server.get("a")).json()["value"] == "2"
    assert await server.proves_itself() == 4
