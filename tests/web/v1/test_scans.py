"""All keys in order: GET and DELETE /v1/kv."""

import asyncio
from itertools import chain
from random import Random
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
import pytest
from multidict import CIMultiDict

from kvactor.api.keys import Items
from kvactor.api.values import item
from kvactor.core import memory
from kvactor.core.context import Page
from kvactor.core.memory import Lease, MemoryAccount
from kvactor.core.messages import Answer
from kvactor.core.records import encode
from kvactor.settings import Settings
from kvactor.web.http import Request
from kvactor.web.steps import Steps
from kvactor.web.v1.ranges import RangeRoutes
from tests.web.conftest import Client
from tests.web.v1.conftest import JSON, ask, commit, keys, opened, problem, put

SMALL = Settings(max_scan_limit=3, max_batch_size=4)


async def fill(client: Client, *names: str, within: str | None = None) -> None:
    for name in names:
        await put(client, quote(name), name, within)


async def pages(client: Client, query: str, within: str | None = None) -> list[list[str]]:
    """Follow a scan by its links, and return the keys of each page."""
    found: list[list[str]] = []
    target: str | None = f"/v1/kv?{query}"
    while target is not None:
        answer = await ask(client, "GET", target, within=within)
        assert answer.status == 200
        body = answer.json()
        found.append([item["key"] for item in body["items"]])
        link = answer.headers.get("Link")
        assert (link is None) is (body["cursor"] is None)
        target = None
        if link is not None:
            assert link.endswith('>; rel="next"')
            target = link[1:].partition(">")[0]
            assert dict(parse_qsl(urlsplit(target).query))["cursor"] == body["cursor"]
            assert len(found) < 100
    return found


async def test_a_scan_answers_items_a_cursor_and_the_revision(client: Client) -> None:
    await fill(client, "b", "a")
    answer = await ask(client, "GET", "/v1/kv")
    shared = {"content_type": "application/json", "expires_at": None}
    assert answer.json() == {
        "items": [
            {"key": "a", "revision": 2, "value": "a", **shared},
            {"key": "b", "revision": 1, "value": "b", **shared},
        ],
        "cursor": None,
        "revision": 2,
    }
    assert answer.revision == 2
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_scan_of_nothing_is_empty(client: Client) -> None:
    answer = await ask(client, "GET", "/v1/kv")
    assert answer.json() == {"items": [], "cursor": None, "revision": 0}


async def test_a_head_of_a_scan_answers_without_the_body(client: Client) -> None:
    await fill(client, "a", "b")
    answer = await ask(client, "HEAD", "/v1/kv?limit=1")
    assert (answer.status, answer.body) == (200, b"")
    assert "Link" in answer.headers


async def test_a_scan_without_values_has_the_other_fields(client: Client) -> None:
    await put(client, "a")
    (item,) = (await ask(client, "GET", "/v1/kv?values=false")).json()["items"]
    assert item == {
        "key": "a",
        "revision": 1,
        "content_type": "application/json",
        "expires_at": None,
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["B", "a", "a/1", "a/2", "a0", "b", "é", "\U0001f600"]),
        ("prefix=", ["B", "a", "a/1", "a/2", "a0", "b", "é", "\U0001f600"]),
        ("prefix=a", ["a", "a/1", "a/2", "a0"]),
        ("prefix=a%2F", ["a/1", "a/2"]),
        ("prefix=%C3%A9", ["é"]),
        ("prefix=x", []),
        ("start=a%2F2", ["a/2", "a0", "b", "é", "\U0001f600"]),
        ("end=a%2F2", ["B", "a", "a/1"]),
        ("end=", []),
        ("start=a&end=b", ["a", "a/1", "a/2", "a0"]),
        ("start=b&end=a", []),
        ("start=a&end=a", []),
        ("prefix=a&start=a%2F2&end=z", ["a/2", "a0"]),
        ("prefix=a&start=B&end=a%2F2", ["a", "a/1"]),
    ],
)
async def test_prefix_start_and_end_say_which_keys_in_either_direction(
    client: Client, query: str, expected: list[str]
) -> None:
    await fill(client, "b", "é", "a/2", "a", "\U0001f600", "a0", "B", "a/1")
    assert await keys(client, f"&{query}") == expected
    assert await keys(client, f"&{query}&reverse=true") == expected[::-1]
    for reverse in ("false", "true"):
        paged = await pages(client, f"{query}&limit=2&reverse={reverse}")
        assert list(chain.from_iterable(paged)) == (expected if reverse == "false" else expected[::-1])
        assert {len(page) for page in paged[:-1]} <= {2}


async def test_a_full_last_page_has_no_cursor(client: Client) -> None:
    await fill(client, "a", "b", "c", "d")
    assert await pages(client, "limit=2") == [["a", "b"], ["c", "d"]]


async def test_the_default_limit_is_100(client: Client) -> None:
    operations = [{"op": "put", "key": f"{number:03}", "value": 0} for number in range(201)]
    await ask(client, "POST", "/v1/batch", {"operations": operations})
    assert [len(page) for page in await pages(client, "")] == [100, 100, 1]
    # More than the owner reads at a time.
    assert [len(page) for page in await pages(client, "limit=201")] == [201]


@pytest.mark.parametrize("settings", [Settings(max_body_size=300)])
async def test_a_page_of_large_values_ends_early_and_the_next_continues(client: Client) -> None:
    for key in "abcdef":
        await ask(client, "PUT", f"/v1/kv/{key}", b"." * 100)
    paged = await pages(client, "")
    assert list(chain.from_iterable(paged)) == list("abcdef")
    assert len(paged) > 1
    (whole,) = await pages(client, "values=false")
    assert whole == list("abcdef")


async def test_a_cursor_neither_misses_nor_repeats_a_key(client: Client) -> None:
    random = Random("scan")
    steady = [f"{number:03}-steady" for number in range(60)]
    await fill(client, *steady)
    for reverse in ("false", "true"):
        found: list[str] = []
        target: str | None = f"/v1/kv?limit=7&reverse={reverse}"
        while target is not None:
            answer = await ask(client, "GET", target)
            found += [item["key"] for item in answer.json()["items"]]
            link = answer.headers.get("Link")
            target = link and link[1:].partition(">")[0]
            for _ in range(3):
                key = f"{random.randrange(60):03}-fleeting"
                await ask(client, random.choice(["PUT", "DELETE"]), f"/v1/kv/{key}", b"1", JSON)
        kept = [key for key in found if key.endswith("steady")]
        assert kept == (steady if reverse == "false" else steady[::-1])
        assert len(set(found)) == len(found)


async def test_a_cursor_of_a_deleted_key_continues_after_it(client: Client) -> None:
    await fill(client, "a", "b", "c")
    cursor = (await ask(client, "GET", "/v1/kv?limit=2")).json()["cursor"]
    await ask(client, "DELETE", "/v1/kv/b")
    assert await keys(client, f"&cursor={cursor}") == ["c"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=1.5",
        "limit=",
        "limit=" + "1" * 5000,
        "limit=1&limit=1",
        "prefix=a&prefix=b",
        "reverse=yes",
        "values=maybe",
        "nothing=1",
        "Prefix=a",
        "prefix=%FF",
        "%FF=a",
        "prefix=%ED%A0%80",
        "cursor=",
        "cursor=x",
        "cursor=%00",
        "cursor=!!!!",
        "cursor=YWJj",
        "cursor=%C3%A9",
        "&".join(f"{number}=" for number in range(101)),
    ],
)
async def test_a_bad_query_is_refused(client: Client, query: str) -> None:
    for method in ("GET", "DELETE"):
        answer = await ask(client, method, f"/v1/kv?{query}")
        assert problem(answer) == (400, "invalid_request")


async def test_a_cursor_of_the_other_direction_is_refused(client: Client) -> None:
    await fill(client, "a", "b", "c")
    for here, there in (("false", "true"), ("true", "false")):
        page = (await ask(client, "GET", f"/v1/kv?limit=1&reverse={here}")).json()
        refused = await ask(client, "GET", f"/v1/kv?cursor={page['cursor']}&reverse={there}")
        assert problem(refused) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("cursor", "reverse", "expected"),
    [
        ("Pv8", "false", []),
        ("Pv__", "false", []),
        ("PP8", "true", ["b", "a"]),
        ("PA", "true", []),
        ("Pg", "false", ["a", "b"]),
    ],
)
async def test_a_forged_cursor_leads_to_nothing_but_keys(
    client: Client, cursor: str, reverse: str, expected: list[str]
) -> None:
    await fill(client, "a", "b")
    headers = {"Idempotency-Key": "hidden"}
    await ask(client, "PUT", "/v1/kv/b", b"", headers)
    assert await keys(client, f"&cursor={cursor}&reverse={reverse}") == expected


@pytest.mark.parametrize("settings", [SMALL])
async def test_the_greatest_limit_is_a_setting(client: Client) -> None:
    await fill(client, "a", "b", "c", "d")
    assert await pages(client, "limit=3") == [["a", "b", "c"], ["d"]]
    assert problem(await ask(client, "GET", "/v1/kv?limit=4")) == (400, "invalid_request")


# -- within a transaction --


@pytest.mark.parametrize("reverse", ["false", "true"])
async def test_a_transactions_writes_are_merged_into_its_scans_and_nobody_elses(
    client: Client, reverse: str
) -> None:
    await fill(client, "a", "b", "c", "d")
    within = await opened(client)
    await put(client, "b", "mine", within)
    await ask(client, "DELETE", "/v1/kv/c", within=within)
    await ask(client, "POST", f"/v1/transactions/{within}/begin")
    await fill(client, "bb", "e", within=within)
    await ask(client, "DELETE", "/v1/kv/a", within=within)
    await put(client, "c", "again", within)
    inside = ["b", "bb", "c", "d", "e"]
    expected = inside if reverse == "false" else inside[::-1]
    for limit in (1, 2, 100):
        paged = await pages(client, f"limit={limit}&reverse={reverse}", within)
        assert list(chain.from_iterable(paged)) == expected
    answer = await ask(client, "GET", "/v1/kv?prefix=b", within=within)
    items = [(item["key"], item["revision"], item["value"]) for item in answer.json()["items"]]
    assert items == [("b", 0, "mine"), ("bb", 0, "bb")]
    assert await keys(client) == ["a", "b", "c", "d"]
    await ask(client, "POST", f"/v1/transactions/{within}/rollback")
    assert await keys(client, within=within) == ["a", "b", "d"]
    await commit(client, within)
    assert await keys(client) == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("query", "written", "conflict"),
    [
        ("prefix=a", "a5", True),
        ("prefix=a", "b", False),
        ("prefix=a&limit=1", "a1", True),
        ("prefix=a&limit=1", "a0", True),
        ("prefix=a&limit=1", "a2", False),
        ("prefix=a&limit=1&reverse=true", "a3", True),
        ("prefix=a&limit=1&reverse=true", "a2", False),
        ("prefix=x", "x", True),
        ("values=false", "zzz", True),
    ],
)
async def test_a_scan_in_a_transaction_is_a_read_of_what_it_returned(
    client: Client, query: str, written: str, conflict: bool
) -> None:
    await fill(client, "a1", "a2", "a3")
    within = await opened(client)
    assert (await ask(client, "GET", f"/v1/kv?{query}", within=within)).status == 200
    await put(client, "mine", 1, within)
    await put(client, written, "by somebody else")
    answer = await commit(client, within)
    assert answer.status == (409 if conflict else 200)


async def test_a_scan_in_an_unknown_transaction_is_not_found(client: Client) -> None:
    for target in ("/v1/kv", "/v1/kv?all=true"):
        method = "DELETE" if "all" in target else "GET"
        answer = await ask(client, method, target, within="nobody's")
        assert problem(answer) == (404, "transaction_not_found")


# -- deleting --


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("prefix=a", ["b", "c"]),
        ("start=b", ["a", "ab"]),
        ("end=b", ["b", "c"]),
        ("start=ab&end=c", ["a", "c"]),
        ("all=true", []),
        ("all=true&prefix=a", ["b", "c"]),
    ],
)
async def test_a_range_is_deleted_in_one_revision(client: Client, query: str, left: list[str]) -> None:
    await fill(client, "a", "ab", "b", "c")
    answer = await ask(client, "DELETE", f"/v1/kv?{query}")
    assert (answer.status, answer.json()) == (200, {"revision": 5, "deleted": 4 - len(left)})
    assert answer.revision == 5
    assert await keys(client) == left
    (event,) = (await ask(client, "GET", "/v1/changes?since=4")).json()["revisions"]
    assert len(event["changes"]) == 4 - len(left)


async def test_a_range_without_keys_is_deleted_without_a_revision(client: Client) -> None:
    await fill(client, "a")
    answer = await ask(client, "DELETE", "/v1/kv?prefix=x")
    assert (answer.status, answer.json()) == (200, {"revision": None, "deleted": 0})
    assert answer.revision == 1


@pytest.mark.parametrize("query", ["", "?all=false", "?prefix=", "?limit=1", "?all=1&all=1"])
async def test_all_keys_are_deleted_only_with_all(client: Client, query: str) -> None:
    await fill(client, "a")
    assert problem(await ask(client, "DELETE", f"/v1/kv{query}")) == (400, "invalid_request")
    assert await keys(client) == ["a"]


@pytest.mark.parametrize("settings", [SMALL])
async def test_a_range_of_too_many_keys_is_not_deleted_and_the_limit_is_told(client: Client) -> None:
    await fill(client, "a", "b", "c", "d", "e")
    answer = await ask(client, "DELETE", "/v1/kv?all=true")
    assert problem(answer) == (413, "range_too_large")
    assert (answer.json()["limit"], "count" in answer.json()) == (4, False)
    assert answer.revision == 5
    assert (await ask(client, "DELETE", "/v1/kv?start=b")).json() == {"revision": 6, "deleted": 4}


async def test_a_range_deleted_in_a_transaction_includes_its_writes_and_is_a_read(
    client: Client,
) -> None:
    await fill(client, "a1", "b")
    within = await opened(client)
    await put(client, "a2", 1, within)
    answer = await ask(client, "DELETE", "/v1/kv?prefix=a", within=within)
    assert answer.json() == {"revision": None, "deleted": 2}
    assert await keys(client, within=within) == ["b"]
    assert await keys(client) == ["a1", "b"]
    await put(client, "a3", "by somebody else")
    assert problem(await commit(client, within)) == (409, "transaction_conflict")
    assert await keys(client) == ["a1", "a3", "b"]


# -- in steps --


class Asked:
    """An exchange whose owner answers at once, the same to all."""

    def __init__(self, target: str, items: list[tuple[bytes, bytes]]) -> None:
        self.request = Request("GET", target, CIMultiDict())
        self.lease = Lease(MemoryAccount(1 << 30), memory.Client())
        self._items = items

    async def ask(self, message: object) -> Answer[Page]:
        return Answer(7, Page(self._items, None), 1)

    async def take(self, steps: Steps[bytes]) -> bytes:
        while True:
            await asyncio.sleep(0)
            try:
                next(steps)
            except StopIteration as end:
                encoded: bytes = end.value
                return encoded


@pytest.mark.parametrize(("count", "size"), [(1000, 10), (10, 1_000_000)], ids=["many", "large"])
def test_a_page_is_encoded_in_steps_and_as_a_whole(count: int, size: int) -> None:
    names = [b"%d" % number for number in range(count)]
    page = [(name, encode(name, b"." * size, "text/plain")) for name in names]
    exchange: Any = Asked("/v1/kv?limit=1000", page)
    scan = RangeRoutes(Settings(max_scan_limit=1000)).scan(exchange)
    pauses, response = 0, None
    while response is None:
        try:
            scan.send(None)
            pauses += 1
        except StopIteration as end:
            response = end.value
    assert pauses >= 3
    items = [item(*one) for one in page]
    assert response.body == msgspec.json.encode(Items(items, None, 7))
