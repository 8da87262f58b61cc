"""The request guard refuses pages of other origins, and pages whose own name resolves to this server:
a browser would lend them its place in the network.
"""

import pytest
from multidict import CIMultiDict

from kvactor.errors import CrossOrigin, HostNotAllowed, InvalidRequest
from kvactor.settings import Settings
from kvactor.web.guard import KNOWN, Form, RequestGuard
from tests.web.conftest import Client, Server

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
async def test_a_request_of_another_origin_is_refused_and_changes_nothing(
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


async def test_a_request_of_the_same_origin_is_served(client: Client) -> None:
    origin = str(client.make_url("/")).rstrip("/")
    answer = await client.put("/v1/kv/a", headers={"Origin": origin}, data=b"1")
    assert answer.status == 201


async def test_a_preflight_is_refused(client: Client) -> None:
    headers = {"Origin": "http://127.0.0.1:1", "Access-Control-Request-Method": "PUT"}
    answer = await client.options("/v1/kv/a", headers=headers)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("Access-Control-")]


# -- names that lead here --

OWN = [
    "localhost",
    "localhost:5000",
    "LocalHost.:80",
    "kv.localhost",
    "a.b.localhost:1",
    "127.0.0.1",
    "127.1.2.3:65535",
    "[::1]",
    "[::1]:5000",
]
FOREIGN = [
    "elsewhere.example",
    "elsewhere.example:5000",
    "localhost.elsewhere.example",
    "notlocalhost",
    ".localhost",
    "127.0.0.1.elsewhere.example",
    "127.0.0.1:80:80",
    "localhost:80x",
    "localhost@elsewhere.example",
    "10.0.0.1",
    "0.0.0.0",  # noqa: S104 (not bound)
    "128.0.0.1",
    "[::2]",
    "[::1",
    "::1]",
    "",
]
EVERYWHERE = [*REQUESTS, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/metrics")]


def asked(host: str | None, **headers: str) -> tuple[tuple[int, int], str, CIMultiDict[str], Form]:
    """Return what the guard looks at of a request that names a host, or none."""
    fields = CIMultiDict(headers)
    if host is not None:
        fields["Host"] = host
    return (1, 1), "/get/a", fields, Form("GET /get/{key}")


@pytest.mark.parametrize(("method", "path"), EVERYWHERE)
async def test_a_foreign_name_in_host_is_refused_and_changes_nothing(
    server: Server, method: str, path: str
) -> None:
    # The browser says nothing of another origin: by the name it is the same.
    rebound = {"Host": "elsewhere.example:5000", "Origin": "http://elsewhere.example:5000"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in rebound.items())]
    answer = await server.exchange("\r\n".join([*lines, "Content-Length: 1", "", "1"]).encode())
    assert answer is not None
    assert answer.status == 403
    assert "does not go by the name 'elsewhere.example:5000'" in answer.body.decode()
    assert "KVACTOR_ALLOWED_HOSTS" in answer.body.decode()
    status = (await server.request("GET", "/v1/status")).json()
    assert (status["revision"], status["transactions"]["shared"]["depth"]) == (0, 0)


async def test_http_1_0_without_a_host_is_served(server: Server) -> None:
    answer = await server.exchange(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1", "localhost", "127.9.9.9", "kv.localhost"])
def test_guard_on_a_loopback_address_accepts_loopback_names_only(listening: str) -> None:
    guard = RequestGuard(Settings(host=listening))
    for host in [*OWN, None]:
        guard.check(*asked(host))
    for host in FOREIGN:
        with pytest.raises(HostNotAllowed):
            guard.check(*asked(host))


@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0", "192.0.2.1"])  # noqa: S104 (not bound)
def test_guard_with_allowed_hosts_accepts_those_and_no_others_on_any_address(listening: str) -> None:
    guard = RequestGuard(Settings(host=listening, allowed_hosts="kv.example, Other.Example:8080 ,"))
    for host in [*OWN, "kv.example", "KV.example.:80", "other.example", f"{listening}:5000"]:
        guard.check(*asked(host))
    for host in {*FOREIGN, "sub.kv.example"} - {listening}:
        with pytest.raises(HostNotAllowed):
            guard.check(*asked(host))


@pytest.mark.parametrize("listening", ["0.0.0.0", "192.0.2.1", "::", "server.example"])  # noqa: S104
def test_guard_on_another_address_accepts_any_name_without_allowed_hosts(listening: str) -> None:
    guard = RequestGuard(Settings(host=listening))
    for host in [*OWN, *FOREIGN]:
        guard.check(*asked(host))
    with pytest.raises(CrossOrigin):
        guard.check(*asked("a.example", Origin="http://b.example"))


def test_guard_remembers_a_bounded_number_of_names() -> None:
    guard = RequestGuard(Settings())
    for number in range(100 * KNOWN):
        guard.check(*asked(f"{number}.localhost"))
    assert 1 < len(guard.known) <= KNOWN


def test_guard_remembers_a_bounded_number_of_lists_of_headers_and_none_that_is_long() -> None:
    guard = RequestGuard(Settings())
    for number in range(10 * KNOWN):
        guard.check(*asked("localhost", **{f"X-{number}": ""}))
    assert 1 <= len(guard.lists) <= KNOWN
    known = set(guard.lists)
    guard.check(*asked("localhost", **{f"Y-{number}": "" for number in range(40)}))
    guard.check(*asked("localhost", **{"z" * 2000: ""}))
    assert set(guard.lists) == known


def test_a_list_of_headers_that_is_known_is_still_refused_when_one_comes_twice() -> None:
    guard = RequestGuard(Settings())
    once = asked("localhost", Kvactor_Transaction="a", Origin="http://localhost")
    guard.check(*once)
    once[2].add("Origin", "http://localhost")
    with pytest.raises(InvalidRequest, match="has the header Origin once"):
        guard.check(*once)
