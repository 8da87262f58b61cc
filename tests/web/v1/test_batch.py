"""Many operations as one: POST /v1/batch."""

import json
import tracemalloc

import pytest
from multidict import CIMultiDict

from kvactor.core import messages, records
from kvactor.core.context import Page
from kvactor.core.messages import Batch, BatchResponse, Check
from kvactor.core.operations import Get, Range, Result, Set
from kvactor.errors import BatchTooLarge, InvalidRequest
from kvactor.settings import Settings
from kvactor.web.http import Request
from kvactor.web.steps import ITEMS_PER_STEP, Steps, at_once
from kvactor.web.v1.batch import ITEM_SIZE, BatchRoutes, encode_batch, encode_steps
from tests.web.conftest import Answer, Client, FakeClock
from tests.web.v1.conftest import JSON, ask, commit, keys, opened, problem, put

MAX = (1 << 63) - 1


async def batch(
    client: Client, *operations: object, within: str | None = None, checks: object = None
) -> Answer:
    """Send a batch."""
    body = {"operations": operations} | ({} if checks is None else {"checks": checks})
    return await ask(client, "POST", "/v1/batch", body, JSON, within)


async def value(client: Client, key: str, within: str | None = None) -> object:
    """Return a key's JSON; the status if there is none."""
    answer = await ask(client, "GET", f"/v1/kv/{key}", within=within)
    return answer.json() if answer.status == 200 else answer.status


async def test_operations_are_done_in_order_as_one_revision_each_with_its_result(
    client: Client,
) -> None:
    await put(client, "old", 0)
    answer = await batch(
        client,
        {"op": "put", "key": "a", "value": [1]},
        {"op": "get", "key": "a"},
        {"op": "put", "key": "a", "value": 5},
        {"op": "increment", "key": "a"},
        {"op": "increment", "key": "new", "by": -2},
        {"op": "delete", "key": "old"},
        {"op": "delete", "key": "old"},
        {"op": "get", "key": "old"},
        {"op": "range", "start": "a", "end": "o"},
        {"op": "delete_range", "prefix": "n"},
        {"op": "range", "limit": 1, "reverse": True},
    )
    shared = {"content_type": "application/json", "expires_at": None, "revision": 0}
    six = {"key": "a", "value": 6, **shared}
    assert answer.status == 200
    assert answer.json() == {
        "revision": 2,
        "results": [
            {},
            {"key": "a", "value": [1], **shared},
            {},
            {"value": 6},
            {"value": -2},
            {"deleted": True},
            {"deleted": False},
            None,
            {"items": [six, {"key": "new", "value": -2, **shared}], "more": False},
            {"deleted": 1},
            {"items": [six], "more": False},
        ],
    }
    assert answer.revision == 2
    assert (await value(client, "a"), await keys(client)) == (6, ["a"])
    (event,) = (await ask(client, "GET", "/v1/changes?since=1")).json()["revisions"]
    assert {one["key"] for one in event["changes"]} == {"a", "old"}


async def test_a_batch_that_changes_nothing_makes_no_revision(client: Client) -> None:
    await put(client, "a")
    for operations in ([], [{"op": "get", "key": "a"}, {"op": "delete", "key": "b"}]):
        answer = await batch(client, *operations)
        assert (answer.status, answer.json()["revision"], answer.revision) == (200, None, 1)


async def test_an_operation_that_fails_undoes_the_batch_and_is_named_by_index(
    client: Client,
) -> None:
    await put(client, "text", "words")
    answer = await batch(
        client,
        {"op": "put", "key": "a", "value": 1},
        {"op": "delete_range", "all": True},
        {"op": "put", "key": "text", "value": "more"},
        {"op": "increment", "key": "text"},
    )
    assert problem(answer) == (409, "not_an_integer")
    assert answer.json()["operation"] == 3
    assert await keys(client) == ["text"]
    assert answer.revision == 1


# -- puts --


@pytest.mark.parametrize(
    ("put", "content_type", "stored"),
    [
        ({"value": {"a": None}}, "application/json", b'{"a": null}'),
        ({"value": None}, "application/json", b"null"),
        ({"value": "é", "content_type": "text/plain"}, "text/plain", "é".encode()),
        ({"value": "<p>", "content_type": "Text/HTML; a=b"}, "Text/HTML; a=b", b"<p>"),
        ({"value_base64": "/wA="}, "application/octet-stream", b"\xff\0"),
        ({"value_base64": ""}, "application/octet-stream", b""),
        ({"value_base64": "PHA+", "content_type": "text/html"}, "text/html", b"<p>"),
        ({"value_base64": "MQ==", "content_type": "application/json"}, "application/json", b"1"),
    ],
)
async def test_a_put_stores_json_or_text_or_bytes(
    client: Client, put: dict[str, object], content_type: str, stored: bytes
) -> None:
    assert (await batch(client, {"op": "put", "key": "a", **put})).status == 200
    answer = await ask(client, "GET", "/v1/kv/a")
    assert answer.body == stored
    assert answer.headers["Content-Type"] == content_type


async def test_a_put_with_a_ttl_ends_by_itself_and_an_increment_leaves_that_as_it_is(
    client: Client, clock: FakeClock
) -> None:
    await batch(client, {"op": "put", "key": "a", "value": 1, "ttl": 2.5})
    clock.now += 2499
    assert (await batch(client, {"op": "increment", "key": "a"})).json()["results"] == [{"value": 2}]
    clock.now += 1
    assert await value(client, "a") == 404
    assert (await batch(client, {"op": "increment", "key": "a"})).json()["results"] == [{"value": 1}]
    clock.now += 10_000
    assert await value(client, "a") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": "put", "key": "a"},
        {"op": "put", "key": "a", "value": 1, "value_base64": "MQ=="},
        {"op": "put", "key": "a", "value": 1, "content_type": "text/plain"},
        {"op": "put", "key": "a", "value": "é", "content_type": "text/plain; é"},
        {"op": "put", "key": "a", "value": "é", "content_type": ""},
        {"op": "put", "key": "a", "value": "é", "content_type": "a\r\nb"},
        {"op": "put", "key": "a", "value": "é", "content_type": "x" * 256},
        {"op": "put", "key": "a", "value_base64": "é"},
        {"op": "put", "key": "a", "value_base64": "MQ="},
        {"op": "put", "key": "a", "value_base64": "M Q=="},
        {"op": "put", "key": "a", "value_base64": "ew==", "content_type": "application/json"},
        {"op": "delete_range"},
        {"op": "delete_range", "all": False, "prefix": ""},
        {"op": "range", "limit": 1001},
    ],
)
async def test_a_malformed_operation_is_named_by_index(client: Client, wrong: object) -> None:
    answer = await batch(client, {"op": "put", "key": "good", "value": 1}, wrong)
    assert problem(answer) == (400, "invalid_request")
    assert answer.json()["operation"] == 1
    assert await keys(client) == []


@pytest.mark.parametrize("operation", ["get", "delete", "increment", "put"])
@pytest.mark.parametrize("key", ["", "k" * 512, "é" * 256])
async def test_a_malformed_key_is_named_by_its_operation(
    client: Client, operation: str, key: str
) -> None:
    more = {"value": 1} if operation == "put" else {}
    answer = await batch(client, {"op": operation, "key": key, **more})
    assert problem(answer) == (400, "invalid_key")
    assert answer.json()["operation"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"{",
        b'{"operations": null}',
        b'{"operations": {}}',
        b'{"operations": [1]}',
        b'{"operations": [{}]}',
        b'{"operations": [{"op": "touch", "key": "a"}]}',
        b'{"operations": [{"op": 1, "key": "a"}]}',
        b'{"operations": [{"key": "a"}]}',
        b'{"operations": [{"op": "get"}]}',
        b'{"operations": [{"op": "get", "key": 1}]}',
        b'{"operations": [{"op": "get", "key": null}]}',
        b'{"operations": [{"op": "get", "key": "a", "more": 1}]}',
        b'{"operations": [{"op": "get", "key": "\xff"}]}',
        rb'{"operations": [{"op": "get", "key": "\ud800"}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": NaN}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": "\xff"}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": ' + b"[" * 100_000,
        b'{"operations": [{"op": "put", "key": "a", "value": 1, "ttl": 0}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": 1, "ttl": -1}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": 1, "ttl": 31536001}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": 1, "ttl": "1"}]}',
        b'{"operations": [{"op": "put", "key": "a", "value": 1, "ttl": 1e400}]}',
        b'{"operations": [{"op": "increment", "key": "a", "by": 1.5}]}',
        b'{"operations": [{"op": "increment", "key": "a", "by": 9223372036854775808}]}',
        b'{"operations": [{"op": "increment", "key": "a", "by": "1"}]}',
        b'{"operations": [{"op": "range", "limit": 0}]}',
        b'{"operations": [{"op": "range", "reverse": 1}]}',
        b'{"operations": [], "checks": null}',
        b'{"operations": [], "checks": [{"key": "a"}]}',
        b'{"operations": [], "checks": [{"key": "a", "revision": -1}]}',
        b'{"operations": [], "checks": [{"key": "a", "revision": "1"}]}',
        b'{"operations": [], "checks": [{"revision": 1}]}',
        b'{"operations": [], "more": 1}',
        b'{"operations": []}{}',
    ],
)
async def test_a_malformed_batch_is_refused(client: Client, body: bytes) -> None:
    answer = await ask(client, "POST", "/v1/batch", body)
    assert problem(answer) == (400, "invalid_request")
    assert answer.revision == 0


# -- limits --


@pytest.mark.parametrize("settings", [Settings(max_batch_size=3)])
async def test_a_batch_over_its_limit_is_refused_checks_included(client: Client) -> None:
    get, check = {"op": "get", "key": "a"}, {"key": "a", "revision": None}
    assert (await batch(client, get, get, checks=[check])).status == 200
    answer = await batch(client, get, get, checks=[check, check])
    assert problem(answer) == (413, "batch_too_large")


@pytest.mark.parametrize("settings", [Settings(max_batch_size=2)])
async def test_a_batch_that_deletes_too_long_a_range_is_refused(client: Client) -> None:
    for key in "abc":
        await put(client, key)
    answer = await batch(client, {"op": "delete_range", "all": True})
    assert problem(answer) == (413, "range_too_large")
    assert (answer.json()["operation"], answer.json()["limit"]) == (0, 2)
    assert await keys(client) == ["a", "b", "c"]


@pytest.mark.parametrize("settings", [Settings(max_body_size=1000)])
@pytest.mark.parametrize("operation", [{"op": "get", "key": "a"}, {"op": "range"}])
async def test_a_batch_with_too_large_a_response_does_nothing(
    client: Client, operation: dict[str, object]
) -> None:
    await ask(client, "PUT", "/v1/kv/a", b"." * 900)
    answer = await batch(client, {"op": "put", "key": "b", "value": 1}, operation, operation)
    assert problem(answer) == (413, "answer_too_large")
    assert answer.json()["operation"] == 2
    assert await keys(client) == ["a"]


@pytest.mark.parametrize("settings", [Settings(max_value_size=10)])
async def test_a_value_in_a_batch_is_limited_as_any_other(client: Client) -> None:
    answer = await batch(client, {"op": "put", "key": "a", "value": "." * 9})
    assert problem(answer) == (413, "value_too_large")


async def test_a_key_may_be_in_a_batch_thousands_of_times(client: Client) -> None:
    answer = await batch(client, *[{"op": "increment", "key": "a"}] * 10_000)
    assert answer.json()["results"][-1] == {"value": 10_000}
    assert answer.revision == 1


# -- counters --


@pytest.mark.parametrize(
    ("before", "by", "after"),
    [(None, 1, 1), (0, 0, 0), (MAX - 1, 1, MAX), (-MAX, -1, -MAX - 1), (MAX, -MAX - 1, -1)],
)
async def test_an_increment_adds_to_an_integer_of_64_bits(
    client: Client, before: int | None, by: int, after: int
) -> None:
    if before is not None:
        await put(client, "a", before)
    answer = await batch(client, {"op": "increment", "key": "a", "by": by})
    assert answer.json()["results"] == [{"value": after}]
    assert await value(client, "a") == after


@pytest.mark.parametrize("stored", [b"1.5", b'"1"', b"null", b"[1]", b"%d" % (MAX + 1), b"1e400"])
async def test_an_increment_of_another_value_is_refused(client: Client, stored: bytes) -> None:
    await ask(client, "PUT", "/v1/kv/a", stored, JSON)
    answer = await batch(client, {"op": "increment", "key": "a"})
    assert problem(answer) == (409, "not_an_integer")
    assert (await ask(client, "GET", "/v1/kv/a")).body == stored


@pytest.mark.parametrize(("before", "by"), [(MAX, 1), (-MAX - 1, -1), (1, MAX)])
async def test_a_sum_of_more_than_64_bits_is_refused(client: Client, before: int, by: int) -> None:
    await put(client, "a", before)
    answer = await batch(client, {"op": "increment", "key": "a", "by": by})
    assert problem(answer) == (409, "not_an_integer")
    assert await value(client, "a") == before


async def test_text_that_reads_as_an_integer_is_incremented(client: Client) -> None:
    await ask(client, "PUT", "/v1/kv/a", b"41")
    await batch(client, {"op": "increment", "key": "a"})
    answer = await ask(client, "GET", "/v1/kv/a")
    assert (answer.body, answer.headers["Content-Type"]) == (b"42", "application/json")


# -- checks --


async def test_failed_checks_are_named_by_index_and_nothing_is_done(
    client: Client, clock: FakeClock
) -> None:
    await put(client, "a")
    await put(client, "b")
    await ask(client, "PUT", "/v1/kv/gone?ttl=1", b"1")
    clock.now += 1000
    hold = [{"key": "a", "revision": 1}, {"key": "none", "revision": None}]
    hold += [{"key": "gone", "revision": None}]
    fail = [{"key": "b", "revision": 1}, {"key": "b", "revision": None}]
    fail += [{"key": "none", "revision": 0}, {"key": "gone", "revision": 3}]
    operation = {"op": "put", "key": "c", "value": 1}
    answer = await batch(client, operation, checks=[*hold, *fail])
    assert problem(answer) == (409, "checks_failed")
    assert answer.json()["failed"] == [3, 4, 5, 6]
    assert await keys(client) == ["a", "b"]
    assert (await batch(client, operation, checks=hold)).status == 200


async def test_checks_are_made_before_the_operations(client: Client) -> None:
    create = {"op": "put", "key": "a", "value": 1}
    absent = [{"key": "a", "revision": None}]
    assert (await batch(client, create, checks=absent)).status == 200
    assert problem(await batch(client, {"op": "delete", "key": "a"}, checks=absent))[0] == 409


@pytest.mark.parametrize("key", ["", "k" * 512])
async def test_a_check_of_a_malformed_key_is_refused(client: Client, key: str) -> None:
    answer = await batch(client, checks=[{"key": key, "revision": None}])
    assert problem(answer) == (400, "invalid_key")


# -- within a transaction --


async def test_a_batch_in_a_transaction_belongs_to_it(client: Client) -> None:
    await put(client, "a", 1)
    within = await opened(client)
    add = {"op": "increment", "key": "a"}
    answer = await batch(client, add, add, {"op": "range"}, within=within)
    assert answer.json()["revision"] is None
    assert answer.json()["results"][1] == {"value": 3}
    assert [item["value"] for item in answer.json()["results"][2]["items"]] == [3]
    assert (await value(client, "a"), await value(client, "a", within)) == (1, 3)
    assert (await commit(client, within)).revision == 2
    assert await value(client, "a") == 3


async def test_a_batch_that_fails_leaves_the_transaction_as_it_was(client: Client) -> None:
    within = await opened(client)
    await put(client, "a", 1, within)
    wrong = await batch(client, {"op": "delete", "key": "a"}, {"op": "get", "key": ""}, within=within)
    assert problem(wrong) == (400, "invalid_key")
    checked = await batch(
        client, {"op": "delete", "key": "a"}, checks=[{"key": "a", "revision": 7}], within=within
    )
    assert problem(checked) == (409, "checks_failed")
    assert await value(client, "a", within) == 1
    assert (await commit(client, within)).status == 200
    assert await value(client, "a") == 1


async def test_checks_see_the_transactions_own_writes(client: Client) -> None:
    await put(client, "a", 1)
    within = await opened(client)
    await ask(client, "DELETE", "/v1/kv/a", within=within)
    await put(client, "b", 1, within)
    mine = [{"key": "a", "revision": None}, {"key": "b", "revision": 0}]
    assert (await batch(client, checks=mine, within=within)).status == 200
    stored = [{"key": "a", "revision": 1}, {"key": "b", "revision": None}]
    answer = await batch(client, checks=stored, within=within)
    assert (problem(answer)[0], answer.json()["failed"]) == (409, [0, 1])


@pytest.mark.parametrize("revision", [1, 2, None])
async def test_a_check_is_a_read_whether_it_holds_or_not(client: Client, revision: int | None) -> None:
    await put(client, "a", 1)
    within = await opened(client)
    await batch(client, checks=[{"key": "a", "revision": revision}], within=within)
    await put(client, "b", 1, within)
    await put(client, "a", "by somebody else")
    assert problem(await commit(client, within)) == (409, "transaction_conflict")


@pytest.mark.parametrize(
    ("operation", "conflict"),
    [
        ({"op": "get", "key": "a"}, True),
        ({"op": "increment", "key": "a"}, True),
        ({"op": "delete", "key": "a"}, True),
        ({"op": "range", "prefix": "a"}, True),
        ({"op": "delete_range", "prefix": "a"}, True),
        ({"op": "put", "key": "a", "value": 1}, False),
        ({"op": "range", "prefix": "b"}, False),
    ],
)
async def test_each_operation_in_a_transaction_is_a_read_or_a_write(
    client: Client, operation: object, conflict: bool
) -> None:
    await put(client, "a", 1)
    within = await opened(client)
    assert (await batch(client, operation, within=within)).status == 200
    await put(client, "a", 2)
    assert (await commit(client, within)).status == (409 if conflict else 200)


async def test_a_batch_in_an_unknown_transaction_is_not_found(client: Client) -> None:
    assert problem(await batch(client, within="x")) == (404, "transaction_not_found")


# -- in steps --


def steps_of(body: object) -> Steps[Batch]:
    request = Request("POST", "/v1/batch", CIMultiDict(), json.dumps(body).encode())
    return BatchRoutes(10_000).parse_steps(request)


def test_a_large_batch_is_parsed_in_steps_and_as_a_whole() -> None:
    operations = [{"op": "put", "key": str(number), "value": number} for number in range(10_000)]
    body = {"operations": operations}
    assert len(list(steps_of(body))) == 1 + 10_000 // ITEMS_PER_STEP
    batch = at_once(steps_of(body))
    names = [b"%d" % number for number in range(10_000)]
    assert batch.operations == tuple(Set(name, name, "application/json") for name in names)


def test_many_checks_are_parsed_in_steps_and_as_a_whole() -> None:
    checks = [{"key": str(number), "revision": number} for number in range(9_000)]
    body = {"operations": [], "checks": checks}
    assert len(list(steps_of(body))) == 9_000 // ITEMS_PER_STEP
    batch = at_once(steps_of(body))
    assert batch.checks == tuple(Check(b"%d" % number, (number,)) for number in range(9_000))


def test_too_many_items_are_refused_before_they_are_taken() -> None:
    steps = steps_of({"operations": [{"op": "get", "key": "a"}] * 10_001})
    with pytest.raises(BatchTooLarge):
        next(steps)


def test_of_items_that_are_none_only_the_first_is_decoded() -> None:
    steps = steps_of({"operations": [1] * 1_000_000})
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match=r"operations\[0\]"):
        next(steps)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_what_a_batch_takes_decoded_is_told_before_it_is_taken() -> None:
    body = {"operations": [{"op": "put", "key": "a", "value": "." * 100_000}] * 10}
    assert next(steps_of(body)) == len(json.dumps(body)) + 10 * ITEM_SIZE


def test_an_error_in_an_item_names_its_place() -> None:
    good = {"op": "get", "key": "a"}
    with pytest.raises(InvalidRequest, match=r"operations\[1000\]\.key"):
        at_once(steps_of({"operations": [good] * 1000 + [{"op": "get", "key": 1}]}))


def test_results_are_encoded_in_steps_and_as_a_whole() -> None:
    batch = Batch((Set(b"a", b"1", ""), Get(b"a")) * 1000)
    results: list[Result] = [False, None]
    asked = Request("POST", "/v1/batch", CIMultiDict())
    answer = messages.Answer(7, BatchResponse(7, results * 1000), 1)
    response = at_once(encode_steps(asked, batch, answer))
    assert response == encode_batch(asked, batch, answer)
    assert json.loads(response.body) == {"revision": 7, "results": [{}, None] * 1000}
    assert len(list(encode_steps(asked, batch, answer))) >= 5


@pytest.mark.parametrize("as_range", [False, True], ids=["gets", "a range"])
def test_large_results_are_encoded_in_steps_of_one_value_each(as_range: bool) -> None:
    names = [b"%d" % number for number in range(8)]
    found = [records.encode(name, b"\x01" * 100_000, "text/plain") for name in names]
    page = Page(list(zip(names, found, strict=True)), None)
    batch = Batch((Range(),)) if as_range else Batch(tuple(map(Get, names)))
    asked = Request("POST", "/v1/batch", CIMultiDict())
    answer = messages.Answer(7, BatchResponse(7, [page] if as_range else list(found)), 1)
    assert len(list(encode_steps(asked, batch, answer))) >= 8
    (result, *rest) = json.loads(encode_batch(asked, batch, answer).body)["results"]
    items = result["items"] if as_range else [result, *rest]
    assert [one["value"] for one in items] == ["\x01" * 100_000] * 8
    assert not as_range or result["more"] is False
