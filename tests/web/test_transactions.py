"""Isolated transactions over HTTP: /v1/transactions, and conflicts as clients see them."""

from datetime import UTC, datetime

import pytest
from aiohttp import ClientResponse

from kvactor.settings import Settings
from tests.web.conftest import Client, FakeClock


def milliseconds(text: str) -> int:
    """Return the time that an RFC 3339 text says, in milliseconds since the epoch."""
    assert text.endswith("Z")
    since = datetime.fromisoformat(text) - datetime.fromtimestamp(0, UTC)
    return round(since.total_seconds() * 1000)


async def problem_of(answer: ClientResponse) -> tuple[int, str]:
    """Return status and code of an answer that has to be a problem document (RFC 9457)."""
    assert answer.content_type == "application/problem+json"
    problem = await answer.json()
    assert set(problem) == {"type", "title", "status", "code", "detail"}
    assert problem["type"] == "about:blank"
    assert problem["status"] == answer.status
    assert problem["title"]
    assert problem["detail"]
    return answer.status, problem["code"]


async def opened(client: Client) -> str:
    """Open a transaction and return its id."""
    answer = await client.post("/v1/transactions")
    assert answer.status == 201
    id_: str = (await answer.json())["id"]
    return id_


async def put(client: Client, key: str, value: object, within: str | None = None) -> int:
    """Set a key, in a transaction if one is named; return the status."""
    headers = {"Kvactor-Transaction": within} if within else {}
    answer = await client.post("/set", json={"key": key, "value": value}, headers=headers)
    return answer.status


async def got(client: Client, key: str, within: str | None = None) -> object:
    """Return a key's value; the status if it has none to give."""
    headers = {"Kvactor-Transaction": within} if within else {}
    answer = await client.get(f"/get/{key}", headers=headers)
    return (await answer.json())["value"] if answer.status == 200 else answer.status


async def step(client: Client, id_: str, name: str) -> tuple[int, object]:
    """Begin, roll back or commit; return status and body, or status and code of a problem."""
    answer = await client.post(f"/v1/transactions/{id_}/{name}")
    return (answer.status, await answer.json()) if answer.status == 200 else await problem_of(answer)


# -- the resource --


async def test_a_new_transaction_can_be_read_at_its_location(client: Client, clock: FakeClock) -> None:
    answer = await client.post("/v1/transactions")
    assert answer.status == 201
    created = await answer.json()
    assert set(created) == {"id", "depth", "expires_at"}
    assert created["depth"] == 1
    assert milliseconds(created["expires_at"]) == clock.now + 30_000
    assert answer.headers["Location"] == f"/v1/transactions/{created['id']}"
    looked = await client.get(answer.headers["Location"])
    assert (looked.status, await looked.json()) == (200, created)


async def test_every_transaction_has_an_unguessable_id(client: Client) -> None:
    ids = {await opened(client) for _ in range(20)}
    assert len(ids) == 20
    assert min(map(len, ids)) * 6 >= 128


@pytest.mark.parametrize("seconds", [0.001, 2, 2.5, 300])
async def test_a_client_chooses_how_long_its_transaction_may_be_idle(
    client: Client, clock: FakeClock, seconds: float
) -> None:
    answer = await client.post("/v1/transactions", json={"idle_timeout": seconds})
    assert answer.status == 201
    assert milliseconds((await answer.json())["expires_at"]) == clock.now + int(seconds * 1000)


@pytest.mark.parametrize("body", [b"{}", b'{"idle_timeout": null}', b""])
async def test_a_transaction_without_an_idle_timeout_gets_the_settings(
    client: Client, clock: FakeClock, body: bytes
) -> None:
    answer = await client.post("/v1/transactions", data=body)
    assert answer.status == 201
    assert milliseconds((await answer.json())["expires_at"]) == clock.now + 30_000


@pytest.mark.parametrize(
    "body",
    [
        b"soon",
        b"[]",
        b"3",
        b"null",
        b'{"idle_timeout": 0}',
        b'{"idle_timeout": 0.0001}',
        b'{"idle_timeout": -1}',
        b'{"idle_timeout": 300.001}',
        b'{"idle_timeout": 1e308}',
        b'{"idle_timeout": 1e400}',
        b'{"idle_timeout": NaN}',
        b'{"idle_timeout": "3"}',
        b'{"idle_timeout": true}',
        b'{"idle_timeout": [3]}',
        b'{"timeout": 3}',
        b'{"idle_timeout": 3}{}',
        b'{"idle_timeout": 3, "x": "\xff"}',
    ],
)
async def test_a_bad_body_opens_no_transaction(client: Client, body: bytes) -> None:
    answer = await client.post("/v1/transactions", data=body)
    assert await problem_of(answer) == (400, "invalid_request")
    status = await (await client.get("/v1/status")).json()
    assert status["transactions"]["open"] == 0


async def test_begin_rollback_and_commit_move_between_levels(client: Client) -> None:
    id_ = await opened(client)
    await put(client, "a", 1, id_)
    begun = await client.post(f"/v1/transactions/{id_}/begin")
    assert (begun.status, (await begun.json())["depth"]) == (200, 2)
    await put(client, "a", 2, id_)
    await client.post(f"/v1/transactions/{id_}/begin")
    await put(client, "b", 3, id_)
    committed = await client.post(f"/v1/transactions/{id_}/commit")
    assert (committed.status, (await committed.json())["depth"]) == (200, 2)
    assert (await got(client, "a", id_), await got(client, "b", id_)) == (2, 3)
    rolled_back = await client.post(f"/v1/transactions/{id_}/rollback")
    assert (rolled_back.status, (await rolled_back.json())["depth"]) == (200, 1)
    assert (await got(client, "a", id_), await got(client, "b", id_)) == (1, 404)
    assert await step(client, id_, "commit") == (200, {"id": id_, "depth": 0})
    assert (await got(client, "a"), await got(client, "b")) == (1, 404)


async def test_rollback_at_the_first_level_ends_a_transaction(client: Client) -> None:
    id_ = await opened(client)
    await put(client, "a", 1, id_)
    assert await step(client, id_, "rollback") == (200, {"id": id_, "depth": 0})
    assert await step(client, id_, "commit") == (404, "transaction_not_found")
    assert await got(client, "a") == 404


async def test_delete_drops_a_transaction_whole_at_any_depth(client: Client) -> None:
    id_ = await opened(client)
    await client.post(f"/v1/transactions/{id_}/begin")
    await put(client, "a", 1, id_)
    answer = await client.delete(f"/v1/transactions/{id_}")
    assert (answer.status, await answer.read()) == (204, b"")
    assert answer.headers["Kvactor-Revision"] == "0"
    again = await client.delete(f"/v1/transactions/{id_}")
    assert await problem_of(again) == (404, "transaction_not_found")
    assert await got(client, "a") == 404


@pytest.mark.parametrize("id_", ["none", "%FF", "%2F", "..%2F", "a" * 4000])
async def test_an_unknown_id_answers_404_on_every_route(client: Client, id_: str) -> None:
    for name in ("begin", "rollback", "commit"):
        assert await step(client, id_, name) == (404, "transaction_not_found")
    path = f"/v1/transactions/{id_}"
    assert await problem_of(await client.get(path)) == (404, "transaction_not_found")
    assert await problem_of(await client.delete(path)) == (404, "transaction_not_found")


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", "/set", b'{"key": "a", "value": 1}'),
        ("GET", "/get/a", None),
        ("DELETE", "/delete/a", None),
        ("POST", "/begin", None),
        ("POST", "/rollback", None),
        ("POST", "/commit", None),
    ],
)
async def test_an_unknown_id_in_the_header_answers_404_and_does_nothing(
    client: Client, method: str, target: str, body: bytes | None
) -> None:
    for id_ in ("none", ""):
        headers = {"Kvactor-Transaction": id_}
        answer = await client.request(method, target, data=body, headers=headers)
        assert answer.status == 404
        assert set(await answer.json()) == {"error"}
    assert await got(client, "a") == 404
    assert (await client.post("/rollback")).status == 400


async def test_a_repeated_commit_gets_the_same_response_and_writes_nothing(
    client: Client,
) -> None:
    id_ = await opened(client)
    await put(client, "a", 1, id_)
    first = await step(client, id_, "commit")
    await put(client, "a", "newer")
    assert await step(client, id_, "commit") == first == (200, {"id": id_, "depth": 0})
    through_header = await client.post("/commit", headers={"Kvactor-Transaction": id_})
    assert through_header.status == 200
    assert through_header.headers["Kvactor-Revision"] == "2"
    assert await got(client, "a") == "newer"
    assert await step(client, id_, "begin") == (404, "transaction_not_found")
    assert await put(client, "a", 1, id_) == 404


@pytest.mark.parametrize("settings", [Settings(remembered_transactions=1)])
async def test_only_the_last_commits_are_remembered(client: Client) -> None:
    first, second = await opened(client), await opened(client)
    await step(client, first, "commit")
    await step(client, second, "commit")
    assert await step(client, first, "commit") == (404, "transaction_not_found")
    assert await step(client, second, "commit") == (200, {"id": second, "depth": 0})


# -- conflicts --


async def test_two_transactions_that_read_and_write_a_key_first_commit_wins(client: Client) -> None:
    await put(client, "balance", 100)
    one, two = await opened(client), await opened(client)
    assert [await got(client, "balance", id_) for id_ in (one, two)] == [100, 100]
    await put(client, "balance", 90, one)
    await put(client, "balance", 80, two)
    await put(client, "more", "of the second", two)
    assert await step(client, one, "commit") == (200, {"id": one, "depth": 0})
    assert await step(client, two, "commit") == (409, "transaction_conflict")
    assert await step(client, two, "commit") == (409, "transaction_conflict")
    assert (await got(client, "balance"), await got(client, "more")) == (90, 404)
    status = await (await client.get("/v1/status")).json()
    assert (status["revision"], status["transactions"]["open"]) == (2, 0)


async def test_a_conflict_is_reported_by_the_next_request(client: Client) -> None:
    id_ = await opened(client)
    assert await got(client, "a", id_) == 404
    await put(client, "a", 1)
    headers = {"Kvactor-Transaction": id_}
    for answer in (
        await client.get("/get/b", headers=headers),
        await client.post("/set", json={"key": "b", "value": 1}, headers=headers),
        await client.delete("/delete/b", headers=headers),
        await client.post("/begin", headers=headers),
        await client.post("/commit", headers=headers),
    ):
        assert answer.status == 409
        assert set(await answer.json()) == {"error"}
    assert await got(client, "b") == 404


async def test_a_conflicted_transaction_may_still_be_dropped(client: Client) -> None:
    id_ = await opened(client)
    await got(client, "a", id_)
    await put(client, "a", 1)
    looked = await client.get(f"/v1/transactions/{id_}")
    assert await problem_of(looked) == (409, "transaction_conflict")
    assert (await client.delete(f"/v1/transactions/{id_}")).status == 204


async def test_write_skew_is_a_conflict(client: Client) -> None:
    await put(client, "alice on call", True)
    await put(client, "bob on call", True)
    one, two = await opened(client), await opened(client)
    for id_ in (one, two):
        assert await got(client, "alice on call", id_) is True
        assert await got(client, "bob on call", id_) is True
    await put(client, "alice on call", False, one)
    await put(client, "bob on call", False, two)
    assert (await step(client, one, "commit"))[0] == 200
    assert (await step(client, two, "commit"))[0] == 409
    assert await got(client, "alice on call") is False
    assert await got(client, "bob on call") is True


async def test_a_transaction_over_other_keys_is_not_disturbed(client: Client) -> None:
    one, two = await opened(client), await opened(client)
    await got(client, "a", one)
    await got(client, "b", two)
    await put(client, "a", 1, one)
    await put(client, "b", 2, two)
    assert (await step(client, one, "commit"))[0] == 200
    assert (await step(client, two, "commit"))[0] == 200
    assert (await got(client, "a"), await got(client, "b")) == (1, 2)


async def test_a_transaction_that_only_wrote_never_conflicts(client: Client) -> None:
    id_ = await opened(client)
    await put(client, "a", "mine", id_)
    await put(client, "a", "theirs")
    assert await got(client, "a", id_) == "mine"
    assert (await step(client, id_, "commit"))[0] == 200
    assert await got(client, "a") == "mine"


async def test_commit_of_the_shared_transaction_conflicts_with_readers_of_its_keys(
    client: Client,
) -> None:
    id_ = await opened(client)
    await got(client, "a", id_)
    await client.post("/begin")
    await put(client, "a", 1)
    assert await got(client, "b", id_) == 404
    await client.post("/commit")
    assert await step(client, id_, "commit") == (409, "transaction_conflict")


# -- limits --


async def test_a_transaction_has_at_most_32_levels(client: Client) -> None:
    id_ = await opened(client)
    for _ in range(31):
        assert (await step(client, id_, "begin"))[0] == 200
    assert await step(client, id_, "begin") == (400, "transaction_too_deep")
    looked = await client.get(f"/v1/transactions/{id_}")
    assert (await looked.json())["depth"] == 32
    await put(client, "a", 1, id_)
    for _ in range(32):
        assert (await step(client, id_, "commit"))[0] == 200
    assert await got(client, "a") == 1


@pytest.mark.parametrize("settings", [Settings(max_transaction_size=12_000)])
async def test_a_write_that_makes_a_transaction_too_large_is_refused_alone_and_says_so(
    client: Client,
) -> None:
    id_ = await opened(client)
    assert await put(client, "a", 1, id_) == 200
    headers = {"Kvactor-Transaction": id_}
    answer = await client.put("/v1/kv/b", data="b" * 10_000, headers=headers)
    assert await problem_of(answer) == (413, "transaction_too_large")
    assert "max_transaction_size). This request was not done." in (await answer.json())["detail"]
    assert (await step(client, id_, "commit"))[0] == 200
    assert (await got(client, "a"), await got(client, "b")) == (1, 404)


async def test_1000_transactions_work_at_once_and_one_more_is_refused(client: Client) -> None:
    ids = [await opened(client) for _ in range(1000)]
    answer = await client.post("/v1/transactions")
    assert await problem_of(answer) == (503, "too_many_transactions")
    assert int(answer.headers["Retry-After"]) > 0
    for number, id_ in enumerate(ids):
        assert await put(client, f"{number}", number, id_) == 200
    assert (await step(client, ids[0], "commit"))[0] == 200
    assert (await step(client, ids[999], "rollback"))[0] == 200
    assert (await got(client, "0"), await got(client, "999")) == (0, 404)
    assert [await got(client, f"{number}", ids[number]) for number in (1, 500, 998)] == [1, 500, 998]
    assert len({await opened(client), await opened(client)}) == 2
    assert (await client.post("/v1/transactions")).status == 503


async def test_an_idle_transaction_is_rolled_back(client: Client, clock: FakeClock) -> None:
    id_ = await opened(client)
    await put(client, "a", 1, id_)
    clock.now += 30_000
    assert await got(client, "a", id_) == 404
    assert await step(client, id_, "commit") == (404, "transaction_not_found")
    assert await got(client, "a") == 404


async def test_a_transaction_in_use_stays_open(client: Client, clock: FakeClock) -> None:
    id_ = await opened(client)
    await put(client, "a", 1, id_)
    for _ in range(3):
        clock.now += 29_999
        looked = await client.get(f"/v1/transactions/{id_}")
        assert milliseconds((await looked.json())["expires_at"]) == clock.now + 30_000
    assert (await step(client, id_, "commit"))[0] == 200
    assert await got(client, "a") == 1


@pytest.mark.parametrize("settings", [Settings(max_transactions=1)])
async def test_an_expired_transaction_makes_room_for_another(client: Client, clock: FakeClock) -> None:
    await opened(client)
    assert (await client.post("/v1/transactions")).status == 503
    clock.now += 30_000
    assert (await client.post("/v1/transactions")).status == 201


async def test_an_idle_shared_transaction_stays_open(client: Client, clock: FakeClock) -> None:
    await client.post("/begin")
    await put(client, "a", 1)
    clock.now += 365 * 24 * 3600 * 1000
    assert (await client.post("/commit")).status == 200
    assert await got(client, "a") == 1


@pytest.mark.parametrize("settings", [Settings(shared_transaction_idle_timeout=5)])
async def test_the_shared_transaction_with_a_timeout_is_rolled_back(
    client: Client, clock: FakeClock
) -> None:
    await client.post("/begin")
    await put(client, "a", 1)
    clock.now += 5_000
    assert (await client.post("/commit")).status == 400
    assert await got(client, "a") == 404
