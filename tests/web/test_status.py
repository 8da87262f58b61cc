"""The server's own state: /healthz, /readyz, /v1/status."""

import pytest

import kvactor
from kvactor.actor import StoreActor
from tests.web.conftest import Client, FakeClock


async def status_of(client: Client) -> dict[str, object]:
    """Return the body of /v1/status."""
    answer = await client.get("/v1/status")
    assert (answer.status, answer.content_type) == (200, "application/json")
    status: dict[str, object] = await answer.json()
    assert answer.headers["Kvactor-Revision"] == str(status["revision"])
    return status


async def test_healthz_answers_ok(client: Client) -> None:
    answer = await client.get("/healthz")
    assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_readyz_answers_ready(client: Client) -> None:
    answer = await client.get("/readyz")
    assert (answer.status, await answer.json()) == (200, {"status": "ready"})


async def test_a_server_without_its_owner_is_alive_and_not_ready(
    client: Client, actor: StoreActor
) -> None:
    await actor.stop()
    assert (await client.get("/healthz")).status == 200
    assert (await client.get("/readyz")).status == 503
    assert (await client.get("/v1/status")).status == 503


async def test_status_of_a_new_server_counts_nothing(client: Client) -> None:
    status = await status_of(client)
    storage = status.pop("storage")
    assert status == {
        "version": kvactor.__version__,
        "revision": 0,
        "keys": 0,
        "mailbox": {"waiting": 0, "held": 0},
        "transactions": {"open": 0, "shared": {"depth": 0, "age": 0}},
    }
    assert isinstance(storage, dict)
    assert storage.pop("free") > 0
    assert storage == {"staged": 0, "memtable": {"keys": 0, "bytes": 0}, "folded": 0}


async def test_status_counts_keys_and_revisions(client: Client) -> None:
    for key in ("a", "b", "a"):
        await client.post("/set", json={"key": key, "value": "v" * 1000})
    await client.delete("/delete/b")
    status = await status_of(client)
    assert (status["revision"], status["keys"]) == (4, 1)
    storage = status["storage"]
    assert isinstance(storage, dict)
    assert storage["memtable"]["keys"] == 2
    assert storage["memtable"]["bytes"] > 1000


async def test_status_shows_the_open_transactions_and_the_age_of_the_shared_one(
    client: Client, clock: FakeClock
) -> None:
    for _ in range(2):
        await client.post("/v1/transactions")
    await client.post("/begin")
    await client.post("/begin")
    clock.now += 2_500
    assert (await status_of(client))["transactions"] == {"open": 2, "shared": {"depth": 2, "age": 2.5}}
    await client.post("/rollback")
    await client.post("/rollback")
    assert (await status_of(client))["transactions"] == {"open": 2, "shared": {"depth": 0, "age": 0}}


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/v1/status"])
async def test_status_routes_take_head_and_refuse_post(client: Client, target: str) -> None:
    assert (await client.head(target)).status == 200
    answer = await client.post(target)
    assert answer.status == 405
    assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}
