"""Pages of other origins do not get in: a browser would lend them its place in the network."""

import pytest

from tests.web.conftest import Client

REQUESTS = [
    ("POST", "/set"),
    ("GET", "/get/a"),
    ("POST", "/begin"),
    ("GET", "/v1/changes"),
    ("PUT", "/v1/kv/a"),
    ("POST", "/v1/batch"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize("origin", ["http://127.0.0.1:1", "https://elsewhere.example", "null", ""])
async def test_a_page_of_another_origin_is_refused_and_nothing_is_done(
    client: Client, method: str, path: str, origin: str
) -> None:
    answer = await client.request(method, path, headers={"Origin": origin}, data=b"1")
    assert answer.status == 403
    body = await answer.json()
    assert f"Pages of {origin} may not" in (body["detail"] if path.startswith("/v1") else body["error"])
    assert int(answer.headers["Kvactor-Revision"]) == 0
    assert not [name for name in answer.headers if name.startswith("Access-Control-")]
    status = await (await client.get("/v1/status")).json()
    assert (status["revision"], status["transactions"]["shared"]["depth"]) == (0, 0)


async def test_a_page_of_the_servers_own_is_welcome(client: Client) -> None:
    origin = str(client.make_url("/")).rstrip("/")
    answer = await client.put("/v1/kv/a", headers={"Origin": origin}, data=b"1")
    assert answer.status == 201


async def test_a_preflight_gets_no_leave(client: Client) -> None:
    headers = {"Origin": "http://127.0.0.1:1", "Access-Control-Request-Method": "PUT"}
    answer = await client.options("/v1/kv/a", headers=headers)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("Access-Control-")]
