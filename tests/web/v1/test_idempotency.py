"""Idempotency-Key: a repeated write is done once and gets the first response."""

import asyncio

import pytest

from kvactor.settings import Settings
from tests.web.conftest import Answer, Client, FakeClock
from tests.web.v1.conftest import JSON, TEXT, ask, commit, keys, opened, problem, put

BATCH = {"operations": [{"op": "increment", "key": "count"}, {"op": "get", "key": "old"}]}

#: Every write that takes a key: method, target, body, headers.
WRITES = {
    "put": ("PUT", "/v1/kv/a", b"value", TEXT),
    "put with ttl": ("PUT", "/v1/kv/a?ttl=5", b"value", TEXT),
    "put if match": ("PUT", "/v1/kv/old", b"value", {"If-Match": '"1"'}),
    "create": ("PUT", "/v1/kv/a", b"value", {"If-None-Match": "*"}),
    "delete": ("DELETE", "/v1/kv/old", None, {}),
    "delete a range": ("DELETE", "/v1/kv?all=true", None, {}),
    "batch": ("POST", "/v1/batch", BATCH, {}),
    "set": ("POST", "/set", {"key": "a", "value": 1}, {}),
    "simple delete": ("DELETE", "/delete/old", None, {}),
}

writes = pytest.mark.parametrize("write", WRITES)


async def once(client: Client, write: str, key: str = "key", within: str | None = None) -> Answer:
    """Send a write under an idempotency key."""
    method, target, body, headers = WRITES[write]
    return await ask(client, method, target, body, {**headers, "Idempotency-Key": key}, within)


def said(answer: Answer) -> tuple[int, bytes, str | None]:
    return answer.status, answer.body, answer.headers.get("ETag")


@writes
async def test_a_repeated_write_is_done_once_and_gets_the_same_response(
    client: Client, write: str
) -> None:
    await put(client, "old")
    first = await once(client, write)
    assert (first.status // 100, first.revision) == (2, 2)
    # What others do in between changes nothing about it.
    await put(client, "a", "by somebody else")
    await put(client, "old", "by somebody else")
    again = await once(client, write)
    assert said(again) == said(first)
    assert again.revision == 4
    assert (await ask(client, "GET", "/v1/kv/old")).json() == "by somebody else"


@writes
async def test_two_writes_at_once_under_one_key_are_one(client: Client, write: str) -> None:
    await put(client, "old")
    first, second = await asyncio.gather(once(client, write), once(client, write))
    assert said(first) == said(second)
    assert first.status // 100 == 2
    assert (await ask(client, "GET", "/v1/kv")).revision == 2


@writes
async def test_a_write_under_another_key_is_done_again(client: Client, write: str) -> None:
    await put(client, "old")
    await once(client, write)
    await put(client, "old")
    before = (await ask(client, "GET", "/v1/kv")).revision
    other = await once(client, write, "another key")
    assert other.status in {200, 201, 204, 412}
    assert other.revision == before + (other.status != 412)


@pytest.mark.parametrize(
    ("method", "target", "body", "headers"),
    [
        ("PUT", "/v1/kv/a", b"another", TEXT),
        ("PUT", "/v1/kv/b", b"value", TEXT),
        ("PUT", "/v1/kv/a?ttl=1", b"value", TEXT),
        ("PUT", "/v1/kv/a", b"value", JSON | {"Content-Type": "text/html"}),
        ("PUT", "/v1/kv/a", b"value", {**TEXT, "If-Match": "*"}),
        ("PUT", "/v1/kv/a", b"value", {**TEXT, "If-None-Match": "*"}),
        ("DELETE", "/v1/kv/a", None, {}),
        ("DELETE", "/v1/kv?all=true", None, {}),
        ("POST", "/v1/batch", {"operations": [{"op": "delete", "key": "a"}]}, {}),
    ],
)
async def test_another_request_under_the_same_key_is_refused(
    client: Client, method: str, target: str, body: object, headers: dict[str, str]
) -> None:
    await once(client, "put")
    answer = await ask(client, method, target, body, {**headers, "Idempotency-Key": "key"})
    assert problem(answer) == (422, "idempotency_key_reused")
    assert answer.revision == 1
    assert (await ask(client, "GET", "/v1/kv/a")).body == b"value"


@pytest.mark.parametrize("write", ["delete", "put if match"])
async def test_a_write_that_was_refused_may_be_sent_again(client: Client, write: str) -> None:
    refused = await once(client, write)
    assert refused.status in {404, 412}
    await put(client, "old")
    done = await once(client, write)
    assert (done.status // 100, done.revision) == (2, 2)


@pytest.mark.parametrize("settings", [Settings(idempotency_window=10)])
async def test_a_key_is_remembered_for_its_window_and_no_longer(
    client: Client, clock: FakeClock
) -> None:
    first = await once(client, "put")
    clock.now += 9999
    assert said(await once(client, "put")) == said(first)
    clock.now += 1
    again = await once(client, "put")
    assert (again.status, again.headers["ETag"]) == (200, '"2"')


async def test_an_idempotency_record_is_in_no_scan_and_no_event(client: Client) -> None:
    await once(client, "batch")
    assert await keys(client) == ["count"]
    (event,) = (await ask(client, "GET", "/v1/changes")).json()["revisions"]
    assert [change["key"] for change in event["changes"]] == ["count"]
    assert (await ask(client, "DELETE", "/v1/kv?all=true")).json()["deleted"] == 1
    assert said(await once(client, "batch"))[0] == 200
    assert await keys(client) == []


async def test_a_write_that_changes_nothing_is_remembered_too(client: Client) -> None:
    await once(client, "delete a range")
    await put(client, "a")
    again = await once(client, "delete a range")
    assert again.json()["deleted"] == 0
    assert await keys(client) == ["a"]


@pytest.mark.parametrize("key", ["k", "k" * 255, "é", '"quoted"', " a b "])
async def test_any_text_of_1_to_255_characters_is_a_key(client: Client, key: str) -> None:
    for _ in range(2):
        assert (await once(client, "put", key)).json() == {"revision": 1}


@writes
@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_an_idempotency_key_of_another_length_is_refused(
    client: Client, write: str, key: str
) -> None:
    await put(client, "old")
    answer = await once(client, write, key)
    assert (answer.status, answer.revision) == (400, 1)


# -- within a transaction --


async def test_an_idempotency_key_in_a_transaction_belongs_to_it(client: Client) -> None:
    within = await opened(client)
    first = await once(client, "batch", within=within)
    assert first.json() == {"revision": None, "results": [{"value": 1}, None]}
    assert said(await once(client, "batch", within=within)) == said(first)
    assert (await commit(client, within)).revision == 1
    assert (await ask(client, "GET", "/v1/kv/count")).json() == 1


async def test_a_write_of_a_rolled_back_transaction_may_be_repeated(client: Client) -> None:
    within = await opened(client)
    await once(client, "batch", within=within)
    await ask(client, "DELETE", f"/v1/transactions/{within}")
    done = await once(client, "batch")
    assert done.json() == {"revision": 1, "results": [{"value": 1}, None]}


async def test_two_transactions_under_one_key_do_not_both_commit(client: Client) -> None:
    one, other = await opened(client), await opened(client)
    for within in (one, other):
        assert (await once(client, "batch", within=within)).status == 200
    assert (await commit(client, one)).status == 200
    assert problem(await commit(client, other)) == (409, "transaction_conflict")
    assert (await ask(client, "GET", "/v1/kv/count")).json() == 1


async def test_a_commit_is_repeated_by_the_transactions_id(client: Client) -> None:
    within = await opened(client)
    await put(client, "a", 1, within)
    first = await commit(client, within)
    await put(client, "a", 2)
    again = await commit(client, within)
    assert said(again) == said(first)
    assert (await ask(client, "GET", "/v1/kv/a")).json() == 2
