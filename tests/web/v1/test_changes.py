"""The changes feed: GET /v1/changes as pages, as a long poll, and as server-sent events."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from kvactor.actor import StoreActor
from kvactor.api.changes import EncodedRevision
from kvactor.core import feed
from kvactor.core.memory import Lease
from kvactor.core.records import Revision
from kvactor.settings import Settings
from kvactor.storage.directory import Storage
from kvactor.storage.memory import MemoryJournal
from kvactor.web import revision_cache
from kvactor.web.server import ACCOUNT
from tests.core.builders import TICK
from tests.web.conftest import PATIENCE, Answer, Client, Connection, FakeClock, Server, message
from tests.web.v1.conftest import JSON, TEXT, ask, commit, opened, problem, put

DIGITS = "1" * 5000
STREAM = {"Accept": "text/event-stream"}
#: A history of a few revisions, folded at once, so that it is trimmed at once.
SHORT = Settings(history=3, memtable_size=1)


async def page(client: Client, query: str = "") -> Any:
    """Return a page of the feed."""
    answer = await ask(client, "GET", f"/v1/changes?{query}")
    assert answer.status == 200
    return answer.json()


async def revisions(client: Client, query: str = "") -> list[int]:
    return [event["revision"] for event in (await page(client, query))["revisions"]]


# -- pages --


async def test_a_page_has_whole_revisions_and_the_next_since(client: Client, clock: FakeClock) -> None:
    await put(client, "a", 1)
    clock.now += 1500
    operations = [{"op": "delete", "key": "a"}, {"op": "put", "key": "b", "value": "x", "ttl": 1}]
    await ask(client, "POST", "/v1/batch", {"operations": operations})
    answer = await ask(client, "GET", "/v1/changes")
    shared = {"content_type": "application/json"}
    first = {"key": "a", "revision": 1, "expires_at": None, "value": 1, **shared}
    second = {"key": "b", "revision": 2, "expires_at": "2023-11-14T22:13:22.500Z", **shared}
    assert answer.json() == {
        "revisions": [
            {"revision": 1, "time": "2023-11-14T22:13:20.000Z", "changes": [first]},
            {
                "revision": 2,
                "time": "2023-11-14T22:13:21.500Z",
                "changes": [{"key": "a", "deleted": True}, {**second, "value": "x"}],
            },
        ],
        "since": 2,
    }
    assert answer.revision == 2
    assert answer.headers["Content-Type"] == "application/json"


async def test_pages_go_on_from_where_the_last_one_ended(client: Client) -> None:
    for number in range(7):
        await put(client, f"k{number}")
    found, since = [], 0
    for _ in range(4):
        got = await page(client, f"since={since}&limit=2")
        found.append([event["revision"] for event in got["revisions"]])
        since = got["since"]
    assert found == [[1, 2], [3, 4], [5, 6], [7]]
    assert await page(client, "since=7") == {"revisions": [], "since": 7}
    assert await page(client, "since=now") == {"revisions": [], "since": 7}


async def test_a_prefix_leaves_out_other_keys_and_revisions_without_any(client: Client) -> None:
    for key in ("a1", "b1", "a2", "b2"):
        await put(client, key)
    await ask(client, "DELETE", "/v1/kv?all=true")
    got = await page(client, "prefix=a")
    assert [event["revision"] for event in got["revisions"]] == [1, 3, 5]
    assert {one["key"] for one in got["revisions"][2]["changes"]} == {"a1", "a2"}
    assert await page(client, "prefix=x&limit=2") == {"revisions": [], "since": 2}


async def test_a_transaction_is_one_revision_and_a_rolled_back_one_none(client: Client) -> None:
    within, other = await opened(client), await opened(client)
    for key in ("a", "b", "a"):
        await put(client, key, key, within)
        await put(client, key, key, other)
    assert await revisions(client) == []
    await ask(client, "DELETE", f"/v1/transactions/{other}")
    await commit(client, within)
    (event,) = (await page(client))["revisions"]
    assert sorted(change["key"] for change in event["changes"]) == ["a", "b"]


async def test_a_key_that_expires_is_deleted_in_the_feed(
    client: Client, actor: StoreActor, clock: FakeClock
) -> None:
    await ask(client, "PUT", "/v1/kv/a?ttl=1", b"1")
    clock.now += 1000
    asyncio.get_running_loop().call_soon(actor._post, TICK)
    got = await page(client, f"since=1&wait={PATIENCE}")
    assert got["revisions"][0]["changes"] == [{"key": "a", "deleted": True}]
    assert got["since"] == 2


@pytest.mark.parametrize("settings", [Settings(max_body_size=1000)])
async def test_a_page_ends_early_when_its_revisions_are_large(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "REVISIONS_PER_READ", 1)
    for number in range(5):
        await ask(client, "PUT", f"/v1/kv/k{number}", b"." * 400)
    got = await page(client)
    # Each takes 400 bytes in base64, and about 150 around that.
    assert [event["revision"] for event in got["revisions"]] == [1, 2]
    assert await revisions(client, f"since={got['since']}") == [3, 4]


@pytest.mark.parametrize(
    "query",
    [
        "since=-1",
        f"since=-{'9' * 30}",
        "since=soon",
        "since=",
        "since=1.5",
        f"since={DIGITS}",
        "since=0&since=0",
        "limit=0",
        "limit=1001",
        "limit=x",
        "wait=-1",
        "wait=300.5",
        "wait=nan",
        "wait=inf",
        "prefix=%FF",
        "after=1",
        "&".join(f"{number}=" for number in range(101)),
    ],
)
async def test_a_bad_query_is_refused(client: Client, query: str) -> None:
    for headers in ({}, STREAM):
        answer = await ask(client, "GET", f"/v1/changes?{query}", headers=headers)
        assert problem(answer) == (400, "invalid_request")


@pytest.mark.parametrize("since", ["1", "18446744073709551616", "9" * 30])
async def test_a_future_revision_is_refused(client: Client, since: str) -> None:
    for headers in ({}, STREAM):
        answer = await ask(client, "GET", f"/v1/changes?since={since}&wait=300", headers=headers)
        assert problem(answer) == (400, "revision_in_future")


@pytest.mark.parametrize("settings", [SHORT])
@pytest.mark.parametrize("headers", [{}, STREAM])
async def test_a_revision_older_than_the_history_gets_410_and_the_oldest(
    client: Client, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TAIL", 2)
    for number in range(10):
        await put(client, "a", number)
    answer = await ask(client, "GET", "/v1/changes?since=1", headers=headers)
    assert problem(answer) == (410, "history_gone")
    oldest = answer.json()["oldest"]
    assert 2 < oldest <= 10
    assert await revisions(client, f"since={oldest - 1}") == list(range(oldest, 11))
    gone = await ask(client, "GET", f"/v1/changes?since={oldest - 2}", headers=headers)
    assert problem(gone) == (410, "history_gone")


@pytest.mark.parametrize("headers", [{}, STREAM])
async def test_a_damaged_revision_is_an_error_and_the_others_are_read(
    client: Client, storage: Storage, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TAIL", 1)
    for number in range(5):
        await put(client, "a", number)
    assert isinstance(storage.journal, MemoryJournal)
    storage.journal.rows[3] = b"damaged"
    answer = await ask(client, "GET", "/v1/changes?since=2", headers=headers)
    assert problem(answer) == (500, "record_damaged")
    assert await revisions(client, "limit=2") == [1, 2]
    assert await revisions(client, "since=3") == [4, 5]


# -- the long poll --


async def waiting(actor: StoreActor) -> None:
    """Wait until somebody waits for changes."""
    async with asyncio.timeout(PATIENCE):
        while not len(actor._owner._feed):
            await asyncio.sleep(0)


async def test_a_long_poll_is_answered_by_the_next_write(client: Client, actor: StoreActor) -> None:
    await put(client, "a")
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(page(client, "since=1&wait=300"))
        await waiting(actor)
        await put(client, "b")
    got = poll.result()
    assert [event["revision"] for event in got["revisions"]] == [2]
    assert got["since"] == 2


async def test_a_long_poll_waits_for_its_prefix(client: Client, actor: StoreActor) -> None:
    async with asyncio.TaskGroup() as group:
        poll = group.create_task(page(client, "since=now&prefix=b&wait=300"))
        await waiting(actor)
        await put(client, "a")
        await put(client, "b")
    got = poll.result()
    assert [event["revision"] for event in got["revisions"]] == [2]


async def test_a_long_poll_does_not_wait_if_there_are_revisions(client: Client) -> None:
    await put(client, "a")
    assert await revisions(client, "wait=300") == [1]


async def test_a_long_poll_without_a_write_times_out_empty(client: Client) -> None:
    await put(client, "a")
    got = await page(client, "since=1&wait=0.001")
    assert got == {"revisions": [], "since": 1}
    assert await page(client, "prefix=x&wait=0.001") == {"revisions": [], "since": 1}


async def test_a_stop_answers_a_long_poll(server: Server, actor: StoreActor) -> None:
    poll = await server.send(message("GET", "/v1/changes?wait=300"))
    await waiting(actor)
    await server.stop()
    answer = await poll.answer()
    assert answer is not None
    assert answer.json() == {"revisions": [], "since": 0}


# -- server-sent events --


class Events:
    """A stream of events over a connection of its own."""

    def __init__(self, connection: Connection, head: Answer) -> None:
        self._connection = connection
        self.head = head
        self._text = b""

    async def line(self) -> bytes | None:
        """Return the next line without its end; None when the stream is over."""
        while b"\n" not in self._text:
            chunk = await self._connection.chunk()
            if not chunk:
                assert self._text == b""
                return None
            self._text += chunk
        line, _, self._text = self._text.partition(b"\n")
        return line

    async def block(self) -> list[bytes] | None:
        """Return the lines up to the next empty one; None when the stream is over."""
        lines: list[bytes] = []
        while line := await self.line():
            lines.append(line)
        return None if line is None else lines

    async def event(self) -> tuple[int, Any]:
        """Return the next event's id and data. Comments are passed over."""
        while (lines := await self.block()) is not None:
            if lines != [b":"]:
                assert len(lines) == 2
                assert lines[0].startswith(b"id: ")
                assert lines[1].startswith(b"data: ")
                return int(lines[0][4:]), json.loads(lines[1][6:])
        raise ConnectionError("the stream is over")

    async def ids(self, count: int) -> list[int]:
        """Return the ids of the next events, and expect that their data says the same."""
        found = [await self.event() for _ in range(count)]
        assert [data["revision"] for _, data in found] == [number for number, _ in found]
        return [number for number, _ in found]


async def follow(server: Server, query: str = "", headers: Mapping[str, str] | None = None) -> Events:
    """Begin to follow the changes."""
    asked = message("GET", f"/v1/changes?{query}", None, {**STREAM, **(headers or {})})
    connection = await server.send(asked)
    head = await connection.head()
    assert head is not None
    return Events(connection, head)


async def test_a_stream_begins_with_the_history_and_continues_with_new_revisions(
    server: Server,
) -> None:
    await server.set("a", 1)
    events = await follow(server)
    assert events.head.status == 200
    assert events.head.headers["Content-Type"] == "text/event-stream"
    assert events.head.headers["Cache-Control"] == "no-store"
    assert events.head.headers["X-Content-Type-Options"] == "nosniff"
    assert events.head.revision == 1
    number, data = await events.event()
    assert (number, data) == (1, (await server.request("GET", "/v1/changes")).json()["revisions"][0])
    for number in (2, 3):
        await server.set("a", number)
        assert await events.ids(1) == [number]


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [
        ("since=2", {}, 3),
        ("since=0", {"Last-Event-ID": "2"}, 3),
        ("since=4", {"Last-Event-ID": "0"}, 1),
        ("", {"Last-Event-ID": "00003"}, 4),
        ("since=now", {}, 6),
        ("since=now", {"Last-Event-ID": "5"}, 6),
    ],
)
async def test_a_stream_resumes_after_the_last_event_id(
    server: Server, query: str, headers: dict[str, str], first: int
) -> None:
    for number in range(5):
        await server.set("a", number)
    events = await follow(server, query, headers)
    await server.set("a", 6)
    assert await events.ids(7 - first) == list(range(first, 7))


@pytest.mark.parametrize("last", ["", "-1", "x", "1.5", "²", DIGITS, "0x1", "1 2"])
async def test_a_malformed_last_event_id_is_refused(server: Server, last: str) -> None:
    events = await server.request("GET", "/v1/changes", None, {**STREAM, "Last-Event-ID": last})
    assert problem(events) == (400, "invalid_request")
    assert await server.proves_itself() == 1


async def test_a_stream_with_a_prefix_leaves_out_the_rest(server: Server) -> None:
    for key in ("a", "b", "a"):
        await server.set(key, 1)
    events = await follow(server, "prefix=a")
    assert await events.ids(2) == [1, 3]
    await server.set("b", 1)
    await server.set("a", 1)
    assert await events.ids(1) == [5]


@pytest.mark.parametrize("value", [b'{\n"a":\r\n1}', b"\n1\r", '"a\u2028b\\n"'.encode()])
@pytest.mark.parametrize("query", ["", "prefix=a"])
async def test_an_event_with_line_breaks_in_its_values_is_one_line_of_data(
    server: Server, value: bytes, query: str
) -> None:
    await server.exchange(message("PUT", "/v1/kv/a", value, JSON))
    await server.exchange(message("PUT", "/v1/kv/a", b"one\ntwo\r\n\r\n", TEXT))
    events = await follow(server, query)
    _, data = await events.event()
    assert data["changes"][0]["value"] == json.loads(value)
    _, data = await events.event()
    assert data["changes"][0]["value"] == "one\ntwo\r\n\r\n"


@pytest.mark.parametrize("settings", [Settings(heartbeat=0.001)])
async def test_a_quiet_stream_sends_a_heartbeat(server: Server) -> None:
    events = await follow(server)
    for _ in range(3):
        assert await events.block() == [b":"]
    await server.set("a", 1)
    assert await events.ids(1) == [1]
    assert await events.block() == [b":"]


@pytest.mark.parametrize("settings", [Settings(heartbeat=0.001)])
async def test_a_quiet_stream_with_a_prefix_sends_the_id_to_resume_from(server: Server) -> None:
    events = await follow(server, "prefix=b")
    assert await events.block() == [b":"]
    await server.set("a", 1)
    async with asyncio.timeout(PATIENCE):
        while (block := await events.block()) != [b":", b"id: 1"]:
            assert block == [b":", b"id: 0"]


async def test_a_stop_ends_a_stream_with_its_last_chunk(server: Server, actor: StoreActor) -> None:
    await server.set("a", 1)
    events = await follow(server)
    assert await events.ids(1) == [1]
    await waiting(actor)
    await server.stop()
    assert await events.block() is None


@pytest.mark.parametrize("settings", [Settings(max_subscribers=2)])
async def test_a_follower_over_the_limit_is_refused_until_another_leaves(
    server: Server, actor: StoreActor
) -> None:
    await follow(server)
    poll = await server.send(message("GET", "/v1/changes?wait=300"))
    async with asyncio.timeout(PATIENCE):
        while len(actor._owner._feed) < 2:
            await asyncio.sleep(0)
    for target, headers in (("/v1/changes", STREAM), ("/v1/changes?wait=1", {})):
        refused = await server.request("GET", target, None, headers)
        assert problem(refused) == (503, "too_many_subscribers")
        assert refused.headers["Retry-After"]
    assert (await server.request("GET", "/v1/changes")).status == 200
    await server.set("a", 1)
    assert await poll.answer() is not None
    assert await (await follow(server)).ids(1) == [1]


@pytest.mark.parametrize(("cache", "size"), [(1, 1 << 20), (3, 1 << 20), (1024, 300), (1024, 1)])
async def test_followers_at_different_places_get_every_event_with_a_small_cache(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: int, size: int
) -> None:
    monkeypatch.setattr(revision_cache, "TAIL", cache)
    monkeypatch.setattr(revision_cache, "TAIL_SIZE", size)
    for number in range(8):
        await server.set("a", number)
    for since in (5, 0, 4, 7, 2, 5):
        events = await follow(server, f"since={since}")
        assert await events.ids(8 - since) == list(range(since + 1, 9))


# -- many followers of large revisions --


async def test_a_revision_is_encoded_once_for_all_prefixes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    steps = EncodedRevision.steps.__func__  # type: ignore[attr-defined]

    def counted(kind: type[EncodedRevision], revision: Revision) -> Any:
        made.append(revision.number)
        return steps(kind, revision)

    monkeypatch.setattr(EncodedRevision, "steps", classmethod(counted))
    many = [{"op": "put", "key": f"k{number:04}", "value": 1} for number in range(1000)]
    await ask(client, "POST", "/v1/batch", {"operations": many})
    pages = [page(client, f"prefix=k{number:03}") for number in range(50)]
    found = await asyncio.gather(*pages)
    assert [len(one["revisions"][0]["changes"]) for one in found] == [10] * 50
    assert made == [1]


@pytest.mark.parametrize("settings", [Settings(max_in_flight_size=1 << 21)])
async def test_a_page_that_memory_does_not_suffice_for_is_refused_before_it_is_made(
    client: Client, app: web.Application
) -> None:
    account = app[ACCOUNT]
    await ask(client, "PUT", "/v1/kv/a", b"." * 400_000)
    other = Lease(account, account.connected("other"))
    other.acquire(1_700_000)
    refused = await ask(client, "GET", "/v1/changes")
    assert (refused.status, refused.json()["code"]) == (503, "overloaded")
    other.close()
    account.disconnected("other")
    assert (await ask(client, "GET", "/v1/changes")).status == 200


# -- followers of few keys --

#: With a byte that somebody else holds, an account of a fraction of the history.
NARROW = Settings(max_in_flight_size=1 << 20)


@pytest.fixture
async def history(server: Server, app: web.Application, monkeypatch: pytest.MonkeyPatch) -> int:
    """60 revisions of 60 kB in the journal, and then one of the key `wanted`, which is returned."""
    monkeypatch.setattr(feed, "TAIL", 2)
    monkeypatch.setattr(feed, "BYTES_PER_READ", 64 * 1024)
    for number in range(60):
        await server.request("PUT", f"/v1/kv/a{number}", "x" * 60_000)
    Lease(app[ACCOUNT], app[ACCOUNT].connected("other")).acquire(1)
    return (await server.request("PUT", "/v1/kv/wanted", 1)).revision


@pytest.mark.parametrize("settings", [NARROW])
async def test_a_stream_with_a_prefix_gets_through_history_and_holds_nothing_of_it(
    server: Server, app: web.Application, actor: StoreActor, history: int
) -> None:
    events = await follow(server, "prefix=wanted")
    progress = []
    while (block := await events.block()) and not block[-1].startswith(b"data: "):
        progress.append(block)
    assert block is not None
    assert block[0] == b"id: %d" % history
    # An event without data sets the id to resume from.
    ids = [int(line[4:]) for (line,) in progress]
    assert len(ids) > 10
    assert ids == sorted(set(ids))
    await waiting(actor)
    assert app[ACCOUNT].used == 1


@pytest.mark.parametrize("settings", [NARROW])
@pytest.mark.parametrize("query", ["limit=1000", "limit=1&wait=300"])
async def test_a_page_and_a_long_poll_with_a_prefix_get_through_history(
    server: Server, app: web.Application, history: int, query: str
) -> None:
    answer = await server.request("GET", f"/v1/changes?prefix=wanted&{query}")
    assert answer.status == 200
    assert [event["revision"] for event in answer.json()["revisions"]] == [history]
    assert app[ACCOUNT].used == 1


async def test_a_long_poll_shows_what_it_has_read_though_its_time_is_over(
    server: Server, app: web.Application, actor: StoreActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = EncodedRevision.steps
    poll = await server.send(message("GET", "/v1/changes?wait=300"))
    await waiting(actor)

    def interrupted(revision: Revision) -> Any:
        # As a stop does: all waits end.
        ended = asyncio.ensure_future(app.on_shutdown.send(app))
        while not ended.done():
            yield
        return (yield from steps(revision))

    monkeypatch.setattr(EncodedRevision, "steps", interrupted)
    many = [{"op": "put", "key": f"k{number:04}", "value": 1} for number in range(1000)]
    await server.request("POST", "/v1/batch", {"operations": many})
    answer = await poll.answer()
    assert answer is not None
    assert [event["revision"] for event in answer.json()["revisions"]] == [1]
    assert answer.json()["since"] == 1


@pytest.mark.parametrize("settings", [Settings(heartbeat=1)])
@pytest.mark.parametrize("sought", [feed.MAX_SOUGHT, 0], ids=["it waits on", "it is woken by each"])
async def test_a_stream_has_its_heartbeat_though_others_write_other_keys(
    server: Server, sought: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_SOUGHT", sought)
    events = await follow(server, "prefix=b")
    assert await events.block() == [b":"]
    beat = asyncio.create_task(events.block())
    written = 0
    async with asyncio.timeout(PATIENCE):
        while not beat.done():
            await server.set("a", written)
            written += 1
    lines = beat.result()
    assert lines is not None
    assert lines[0] == b":"
    assert int(lines[1].removeprefix(b"id: ")) > 0


async def test_a_stream_that_waits_holds_no_text(
    server: Server, app: web.Application, actor: StoreActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision_cache, "TAIL_SIZE", 1000)
    for key in ("a", "b"):
        await server.request("PUT", f"/v1/kv/{key}", "x" * 100_000)
    events = await follow(server, "since=1")
    assert await events.ids(1) == [2]
    await waiting(actor)
    # It takes the other's place in the cache.
    assert (await server.request("GET", "/v1/changes?limit=1")).status == 200
    async with asyncio.timeout(PATIENCE):
        while app[ACCOUNT].used:
            await asyncio.sleep(0)
