"""Errors: the table is complete, and the server's own faults are logged and not sent."""

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec
import pytest
from aiohttp.http_parser import HttpRequestParserPy
from pytest_aiohttp.plugin import AiohttpClient

from kvactor import errors
from kvactor.actor import StoreActor
from kvactor.core.memory import UNCOUNTED, Lease
from kvactor.core.messages import Answer, Message
from kvactor.core.protocols import Done
from kvactor.core.records import Revision
from kvactor.errors import DataDirectoryError, KvactorError
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.storage.memory import MemoryJournal, MemoryTree
from kvactor.web.app import create_app
from kvactor.web.errors import STATUS
from tests.web.conftest import Client, Server, message

R = TypeVar("R")


def descendants(kind: type[KvactorError]) -> Iterator[type[KvactorError]]:
    """Yield every class of kvactor's below `kind`."""
    for below in kind.__subclasses__():
        if below.__module__.startswith(f"{errors.__package__}."):
            yield below
        yield from descendants(below)


# -- the table --


def test_the_table_has_a_status_for_every_error_that_can_reach_a_client() -> None:
    reach = {kind for kind in descendants(KvactorError) if not issubclass(kind, DataDirectoryError)}
    assert set(STATUS) == reach


def test_every_status_is_one_of_an_error() -> None:
    assert {status for status in STATUS.values() if not 400 <= status < 600} == set()


def test_codes_are_unique_and_in_snake_case() -> None:
    codes = [kind.__dict__.get("code", "") for kind in descendants(KvactorError)]
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if not re.fullmatch("[a-z]+(_[a-z]+)*", code)] == []


# -- faults --


class Careless(StoreActor):
    """An actor in which every request meets a mistake."""

    def ask(self, message: Message[R], lease: Lease = UNCOUNTED) -> "asyncio.Future[Answer[R]]":
        raise LookupError(f"a secret that {type(message).__name__} stumbled over")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/get/a", {"error"}),
        ("/v1/status", {"type", "title", "status", "code", "detail"}),
    ],
)
async def test_an_unexpected_exception_is_logged_and_not_sent(
    aiohttp_client: AiohttpClient,
    storage: Storage,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    target: str,
    expected: set[str],
) -> None:
    client = await aiohttp_client(create_app(Careless(storage, settings), settings))
    answer = await client.get(target)
    assert answer.status == 500
    assert answer.headers["Kvactor-Revision"] == "0"
    assert set(await answer.json()) == expected
    text = await answer.text()
    assert "secret" not in text
    assert "LookupError" not in text
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert target in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    assert (await client.get("/healthz")).status == 200


class FailingJournal(MemoryJournal):
    """A journal whose flushes fail."""

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        done(OSError(5, "a cable has come off"))


async def test_a_failed_flush_is_an_unknown_outcome_and_later_requests_are_refused(
    aiohttp_client: AiohttpClient, settings: Settings
) -> None:
    actor = StoreActor(Storage(FailingJournal(), MemoryTree()), settings)
    await actor.start()
    client = await aiohttp_client(create_app(actor, settings))
    for _ in range(2):
        answer = await client.post("/set", json={"key": "a", "value": 1})
        assert answer.status == 500
        assert "may have been done, or not" in (await answer.json())["error"]
        assert "cable" not in await answer.text()
    opened = await client.post("/v1/transactions")
    assert (opened.status, (await opened.json())["code"]) == (500, "outcome_unknown")
    assert actor.done.exception() is not None


class FullJournal(MemoryJournal):
    """A journal on a disk that is full up to the last bytes."""

    def free_space(self) -> int:
        return 1000


async def test_writes_on_a_full_disk_get_507_and_reads_go_on(
    aiohttp_client: AiohttpClient, settings: Settings
) -> None:
    actor = StoreActor(Storage(FullJournal(), MemoryTree()), settings)
    await actor.start()
    client = await aiohttp_client(create_app(actor, settings))
    answer = await client.post("/set", json={"key": "a", "value": 1})
    assert (answer.status, set(await answer.json())) == (507, {"error"})
    assert (await client.get("/get/a")).status == 404
    assert (await client.get("/readyz")).status == 200
    await actor.stop()


async def test_a_stopping_server_answers_503(client: Client, actor: StoreActor) -> None:
    await actor.stop()
    for target in ("/readyz", "/metrics"):
        answer = await client.get(target)
        assert (answer.status, (await answer.json())["code"]) == (503, "stopping")
    answer = await client.get("/get/a")
    assert (answer.status, set(await answer.json())) == (503, {"error"})
    assert int(answer.headers["Retry-After"]) > 0


# -- time --


@pytest.mark.parametrize("settings", [Settings(body_timeout=0.05)])
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/set", {"error": "The body has not arrived within 0.05 s."}),
        (
            "/v1/transactions",
            {
                "type": "about:blank",
                "title": "Request Timeout",
                "status": 408,
                "code": "body_timeout",
                "detail": "The body has not arrived within 0.05 s.",
            },
        ),
    ],
)
async def test_a_body_that_does_not_arrive_in_time_gets_408(
    server: Server, target: str, expected: dict[str, object]
) -> None:
    connection = await server.send(message("POST", target, b'{"key": "a", "value": 1}')[:-1])
    answer = await connection.answer()
    assert answer is not None
    assert (answer.status, answer.json(), answer.revision) == (408, expected, 0)
    # What comes too late is not done any more.
    await connection.send(b"}")
    assert await server.proves_itself() == 1
    assert (await server.get("a")).status == 404


# -- shapes --


@pytest.mark.parametrize(
    ("method", "target", "problem"),
    [
        ("GET", "/nothing", False),
        ("GET", "/get/v1", False),
        ("GET", "/metricsx", False),
        ("POST", "/docs", False),
        ("GET", "/v1", True),
        ("GET", "/v1/", True),
        ("GET", "/v1/nothing", True),
        ("POST", "/healthz", True),
        ("POST", "/readyz?x=1", True),
        ("POST", "/metrics", True),
    ],
)
async def test_problem_documents_are_for_v1_and_monitoring_alone(
    client: Client, method: str, target: str, problem: bool
) -> None:
    answer = await client.request(method, target)
    assert answer.status in {404, 405}
    assert answer.content_type == ("application/problem+json" if problem else "application/json")
    assert ("code" in msgspec.json.decode(await answer.read(), type=dict[str, object])) is problem
    assert ("Vary" in answer.headers) is target.startswith("/v1")


async def test_an_error_with_markup_in_it_is_json(client: Client) -> None:
    answer = await client.get("/<script>alert(1)</script>")
    assert (answer.status, answer.content_type) == (404, "application/json")


async def test_create_app_refuses_aiohttp_without_its_parser_in_c(
    actor: StoreActor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvactor.web.server.HttpRequestParser", HttpRequestParserPy)
    with pytest.raises(RuntimeError, match="AIOHTTP_NO_EXTENSIONS"):
        create_app(actor, settings)
