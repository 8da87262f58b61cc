"""The six simple routes, their exact responses, and the values and keys that they take."""

from urllib.parse import quote

import msgspec
import pytest

from kvactor.settings import Settings
from tests.web.conftest import Client, Server

NOT_FOUND = (404, {"error": "Key not found"})
REQUIRED = (404, {"error": "Key and value are required"})


class KeyValue(msgspec.Struct, forbid_unknown_fields=True):
    """The response to GET /get/{key}, the value as JSON text."""

    key: str
    value: msgspec.Raw


async def call(
    server: Server, method: str, target: str, body: object = None, within: str | None = None
) -> tuple[int, object]:
    """Send a request over a new connection, in a transaction if one is named."""
    headers = None if within is None else {"Kvactor-Transaction": within}
    answer = await server.request(method, target, body, headers)
    return answer.status, answer.json()


async def opened(server: Server) -> str:
    """Open an isolated transaction and return its id."""
    answer = await server.request("POST", "/v1/transactions")
    assert answer.status == 201
    id_: str = answer.json()["id"]
    return id_


# -- SEED.md, example by example --


async def test_set_answers_as_documented(client: Client) -> None:
    answer = await client.post("/set", json={"key": "name", "value": "Alice"})
    assert (answer.status, await answer.json()) == (200, {"status": "ok"})
    assert answer.content_type == "application/json"


async def test_get_answers_as_documented(client: Client) -> None:
    await client.post("/set", json={"key": "name", "value": "Alice"})
    answer = await client.get("/get/name")
    assert (answer.status, await answer.json()) == (200, {"key": "name", "value": "Alice"})
    assert answer.content_type == "application/json"


async def test_get_of_a_key_without_a_value_answers_as_documented(client: Client) -> None:
    answer = await client.get("/get/name")
    assert (answer.status, await answer.json()) == NOT_FOUND


async def test_delete_answers_as_documented(client: Client) -> None:
    await client.post("/set", json={"key": "name", "value": "Alice"})
    answer = await client.delete("/delete/name")
    assert (answer.status, await answer.json()) == (200, {"status": "deleted"})
    answer = await client.get("/get/name")
    assert (answer.status, await answer.json()) == NOT_FOUND


async def test_delete_of_a_key_without_a_value_answers_as_documented(client: Client) -> None:
    answer = await client.delete("/delete/name")
    assert (answer.status, await answer.json()) == NOT_FOUND


async def test_begin_and_rollback_answer_as_documented(client: Client) -> None:
    answer = await client.post("/begin")
    assert (answer.status, await answer.json()) == (200, {"status": "transaction started"})
    answer = await client.post("/rollback")
    assert (answer.status, await answer.json()) == (200, {"status": "transaction rolled back"})
    answer = await client.post("/rollback")
    assert (answer.status, await answer.json()) == (400, {"error": "No transaction to rollback"})


async def test_begin_and_commit_answer_as_documented(client: Client) -> None:
    await client.post("/begin")
    answer = await client.post("/commit")
    assert (answer.status, await answer.json()) == (200, {"status": "transaction committed"})
    answer = await client.post("/commit")
    assert (answer.status, await answer.json()) == (400, {"error": "No transaction to commit"})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"key": "name"},
        {"value": "Alice"},
        {"key": "", "value": "Alice"},
        {"key": None, "value": "Alice"},
        {"key": "name", "value": None},
        {"key": None, "value": None},
        {"Key": "name", "Value": "Alice"},
    ],
    ids=str,
)
async def test_set_without_a_key_or_a_value_answers_404(client: Client, body: object) -> None:
    answer = await client.post("/set", json=body)
    assert (answer.status, await answer.json()) == REQUIRED
    assert answer.headers["Kvactor-Revision"] == "0"


async def test_set_of_null_within_spaces_is_a_missing_value(client: Client) -> None:
    answer = await client.post("/set", data=b'{"key": "name", "value": \n null }')
    assert (answer.status, await answer.json()) == REQUIRED


async def test_set_replaces_a_value_and_ignores_other_fields(client: Client) -> None:
    await client.post("/set", json={"key": "name", "value": "Alice"})
    answer = await client.post("/set", json={"key": "name", "value": ["Bob"], "ttl": 1, "x": None})
    assert answer.status == 200
    answer = await client.get("/get/name")
    assert await answer.json() == {"key": "name", "value": ["Bob"]}


async def test_set_takes_json_whatever_content_type_says(client: Client) -> None:
    headers = {"Content-Type": "text/plain"}
    answer = await client.post("/set", data=b'{"key": "name", "value": 1}', headers=headers)
    assert answer.status == 200


# -- values --


@pytest.mark.parametrize(
    "text",
    [
        '""',
        "0",
        "-0",
        "-0.0",
        "false",
        "true",
        "[]",
        "{}",
        '"null"',
        "[null]",
        '{"a": {"b": [1, {"c": null}]}, "a": 2}',
        "[ 1 ,\n\t2 ]",
        str(2**200),
        f"-{2**200}",
        "1e400",
        "-1E+400",
        "1.10",
        "0.1000000000000000055511151231257827",
        "9" * 5000,
        '"é 漢字 \U0001f600"',
        '"\u2028\x7f\ufeff\uffff"',
        r'"\u00e9 \ud83d\ude00 \u0000 \n \" \\ \/"',
        "[" * 200 + "]" * 200,
    ],
    ids=ascii,
)
async def test_a_value_comes_back_as_the_same_json_text(client: Client, text: str) -> None:
    await client.post("/set", data=f'{{"key": "k", "value": {text}}}'.encode())
    answer = await client.get("/get/k")
    got = msgspec.json.decode(await answer.read(), type=KeyValue)
    assert (got.key, bytes(got.value).decode()) == ("k", text)


async def test_a_value_as_long_as_the_limit_comes_back(server: Server) -> None:
    value = "a" * (Settings().max_value_size - len('""'))
    assert (await server.set("k", value)).status == 200
    assert (await server.get("k")).json() == {"key": "k", "value": value}


# -- keys --


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("a/b", "a/b"),
        ("a/b", "a%2Fb"),
        ("/", "/"),
        ("//a//", "//a//"),
        ("/get/a", "/get/a"),
        ("a%2Fb", "a%252Fb"),
        (".", "."),
        ("..", ".."),
        ("../set", "../set"),
        ("../..", "%2E%2E/.."),
        ("a/./b/../c", "a/./b/../c"),
        ("a?b", "a%3Fb"),
        ("a?b=c&d", "a%3Fb=c&d"),
        ("a", "a?b=c"),
        ("a#b", "a%23b"),
        ("a+b", "a+b"),
        ("a b", "a%20b"),
        ("a\nb", "a%0Ab"),
        ("\n", "%0A"),
        ("a\r\nb", "a%0D%0Ab"),
        ("\x00", "%00"),
        ("%", "%25"),
        ("%zz", "%25zz"),
        ("é", "%C3%A9"),
        ("é", "%c3%a9"),
        ("e\u0301", "e%CC%81"),
        ("漢字/\U0001f600", quote("漢字/\U0001f600")),
        ("ключ", quote("ключ")),
        ('"\\', "%22%5C"),
        ("{key}", "{key}"),
        ("a:b@c;d,e", "a:b@c;d,e"),
        (" ", "%20"),
        ("k" * 511, "k" * 511),
        ("é" * 255 + "k", quote("é" * 255) + "k"),
    ],
    ids=ascii,
)
async def test_a_key_in_a_path_is_the_key_in_a_body(server: Server, key: str, target: str) -> None:
    assert await call(server, "POST", "/set", {"key": key, "value": 1}) == (200, {"status": "ok"})
    assert await call(server, "GET", f"/get/{target}") == (200, {"key": key, "value": 1})
    assert await call(server, "DELETE", f"/delete/{target}") == (200, {"status": "deleted"})
    assert await call(server, "GET", f"/get/{target}") == NOT_FOUND


async def test_keys_that_differ_in_their_bytes_alone_are_two_keys(server: Server) -> None:
    await server.set("é", "one code point")
    await server.set("e\u0301", "two code points")
    assert await call(server, "GET", "/get/%C3%A9") == (200, {"key": "é", "value": "one code point"})
    assert (await server.get("e%CC%81")).json()["value"] == "two code points"


# -- nesting; each step over a connection of its own --


async def test_rollback_forgets_what_a_commit_had_merged_into_it(server: Server) -> None:
    for target in ("/begin", "/begin"):
        assert (await call(server, "POST", target))[0] == 200
    await server.set("a", 1)
    assert await call(server, "POST", "/commit") == (200, {"status": "transaction committed"})
    assert await call(server, "GET", "/get/a") == (200, {"key": "a", "value": 1})
    assert await call(server, "POST", "/rollback") == (200, {"status": "transaction rolled back"})
    assert await call(server, "GET", "/get/a") == NOT_FOUND
    assert (await call(server, "POST", "/commit"))[0] == 400


async def test_rollback_of_an_inner_delete_leaves_the_outer_set(server: Server) -> None:
    await call(server, "POST", "/begin")
    await server.set("a", 1)
    await call(server, "POST", "/begin")
    assert await call(server, "DELETE", "/delete/a") == (200, {"status": "deleted"})
    assert await call(server, "GET", "/get/a") == NOT_FOUND
    assert await call(server, "DELETE", "/delete/a") == NOT_FOUND
    await call(server, "POST", "/rollback")
    assert await call(server, "GET", "/get/a") == (200, {"key": "a", "value": 1})
    assert await call(server, "POST", "/commit") == (200, {"status": "transaction committed"})
    assert await call(server, "GET", "/get/a") == (200, {"key": "a", "value": 1})
    assert await call(server, "POST", "/rollback") == (400, {"error": "No transaction to rollback"})


async def test_commit_of_the_shared_transaction_overwrites_other_writes(
    server: Server,
) -> None:
    other = await opened(server)
    await call(server, "POST", "/begin")
    assert await call(server, "GET", "/get/a") == NOT_FOUND
    await server.set("a", "shared")
    await call(server, "POST", "/set", {"key": "a", "value": "isolated"}, other)
    await call(server, "POST", "/commit", None, other)
    assert (await server.get("a")).json()["value"] == "shared"
    assert await call(server, "POST", "/commit") == (200, {"status": "transaction committed"})
    assert (await server.get("a")).json()["value"] == "shared"


# -- the header --


async def test_all_six_routes_belong_to_the_transaction_in_the_header(server: Server) -> None:
    id_ = await opened(server)
    mine = (200, {"key": "a", "value": 1})
    assert await call(server, "POST", "/set", {"key": "a", "value": 1}, id_) == (200, {"status": "ok"})
    assert await call(server, "GET", "/get/a", None, id_) == mine
    assert await call(server, "GET", "/get/a") == NOT_FOUND
    begun = await call(server, "POST", "/begin", None, id_)
    assert begun == (200, {"status": "transaction started"})
    assert await call(server, "DELETE", "/delete/a", None, id_) == (200, {"status": "deleted"})
    assert await call(server, "GET", "/get/a", None, id_) == NOT_FOUND
    rolled_back = await call(server, "POST", "/rollback", None, id_)
    assert rolled_back == (200, {"status": "transaction rolled back"})
    assert await call(server, "GET", "/get/a", None, id_) == mine
    # Nobody has opened the shared transaction by any of this.
    assert await call(server, "POST", "/rollback") == (400, {"error": "No transaction to rollback"})
    committed = await call(server, "POST", "/commit", None, id_)
    assert committed == (200, {"status": "transaction committed"})
    assert await call(server, "GET", "/get/a") == mine


async def test_shared_and_isolated_transactions_do_not_see_each_other(server: Server) -> None:
    id_ = await opened(server)
    await call(server, "POST", "/begin")
    await server.set("shared", 1)
    await call(server, "POST", "/set", {"key": "isolated", "value": 2}, id_)
    assert await call(server, "GET", "/get/shared", None, id_) == NOT_FOUND
    assert await call(server, "GET", "/get/isolated") == NOT_FOUND
    assert await call(server, "GET", "/get/shared") == (200, {"key": "shared", "value": 1})


# -- the revision --


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("POST", "/set", 400),
        ("GET", "/get/a", 404),
        ("DELETE", "/delete/a", 404),
        ("POST", "/begin", 200),
        ("POST", "/rollback", 400),
        ("POST", "/commit", 400),
        ("POST", "/v1/transactions", 201),
        ("GET", "/v1/transactions/none", 404),
        ("GET", "/get/%FF", 400),
        ("GET", "/get/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/set", 405),
        ("DELETE", "/v1/transactions", 405),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/v1/status", 200),
    ],
)
async def test_every_response_has_the_revision(
    server: Server, method: str, target: str, status: int
) -> None:
    await server.set("b", 1)
    answer = await server.request(method, target)
    assert answer.status == status
    assert answer.headers["Kvactor-Revision"] == "1"


async def test_the_revision_goes_up_by_one_with_each_committed_write(server: Server) -> None:
    assert (await server.get("a")).revision == 0
    assert (await server.set("a", 1)).revision == 1
    assert (await server.set("a", 1)).revision == 2
    assert (await server.get("a")).revision == 2
    assert (await server.request("DELETE", "/delete/a")).revision == 3
    assert (await server.request("DELETE", "/delete/a")).revision == 3
    assert (await server.request("POST", "/begin")).revision == 3
    assert (await server.set("a", 1)).revision == 3
    assert (await server.set("b", 2)).revision == 3
    assert (await server.request("POST", "/commit")).revision == 4
    assert (await server.request("POST", "/begin")).revision == 4
    assert (await server.set("c", 3)).revision == 4
    assert (await server.request("POST", "/rollback")).revision == 4
    assert (await server.request("POST", "/commit")).revision == 4
