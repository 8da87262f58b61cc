"""Keys as resources: /v1/kv/{key}."""

import base64

import pytest
from multidict import CIMultiDict

from kvactor.settings import Settings
from tests.web.conftest import Answer, Client, FakeClock, Server, message
from tests.web.v1.conftest import JSON, TEXT, ask, commit, keys, opened, problem, put

DIGITS = "1" * 5000
YEAR = 365 * 24 * 3600


async def written(
    client: Client, method: str = "PUT", within: str | None = None, **headers: str
) -> Answer:
    """Write the key `a` under preconditions; `_` in their names stands for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    body = b"new" if method == "PUT" else None
    return await ask(client, method, "/v1/kv/a", body, named, within)


# -- writing and reading --


async def test_a_put_creates_with_201_and_replaces_with_200(
    client: Client,
) -> None:
    for revision, status in ((1, 201), (2, 200)):
        answer = await ask(client, "PUT", "/v1/kv/a", b"value")
        assert (answer.status, answer.json()) == (status, {"revision": revision})
        assert answer.headers["ETag"] == f'"{revision}"'
        assert answer.revision == revision


@pytest.mark.parametrize(
    ("content_type", "value"),
    [
        ("text/plain", b"words"),
        ("text/html; charset=utf-8", "<p>é</p>".encode()),
        ("text/plain", b"\xff\xfe"),
        ("image/png", bytes(range(256))),
        ("application/json", b' {"a":\n1} '),
        ("application/json; charset=utf-8", b"null"),
        ("application/vnd.api+json", b"no json"),
        ("x", b""),
    ],
)
async def test_a_value_comes_back_byte_for_byte_under_its_content_type(
    client: Client, content_type: str, value: bytes
) -> None:
    await ask(client, "PUT", "/v1/kv/a", value, {"Content-Type": content_type})
    answer = await ask(client, "GET", "/v1/kv/a")
    assert (answer.status, answer.body) == (200, value)
    assert answer.headers["Content-Type"] == content_type
    assert answer.headers["ETag"] == '"1"'
    assert answer.revision == 1
    assert "Kvactor-Expires-At" not in answer.headers


async def test_a_value_without_a_content_type_is_bytes(client: Client) -> None:
    await ask(client, "PUT", "/v1/kv/a", b"value")
    answer = await ask(client, "GET", "/v1/kv/a")
    assert answer.headers["Content-Type"] == "application/octet-stream"


async def test_head_answers_as_get_does_without_the_body(client: Client) -> None:
    await ask(client, "PUT", "/v1/kv/a?ttl=9", b"value", TEXT)
    got, head = await ask(client, "GET", "/v1/kv/a"), await ask(client, "HEAD", "/v1/kv/a")
    assert (head.status, head.body) == (200, b"")
    for answer in (got, head):
        del answer.headers["Date"]
    assert head.headers == got.headers
    assert head.headers["Content-Length"] == "5"
    missing = await ask(client, "HEAD", "/v1/kv/b")
    assert (missing.status, missing.body) == (404, b"")


@pytest.mark.parametrize("headers", [{}, {"If-None-Match": "*"}])
async def test_a_stored_page_never_runs_as_this_origin(client: Client, headers: dict[str, str]) -> None:
    page = b"<script>alert(document.domain)</script>"
    await ask(client, "PUT", "/v1/kv/a", page, {"Content-Type": "text/html"})
    answer = await ask(client, "GET", "/v1/kv/a", headers=headers)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert "sandbox" in policy
    assert "default-src 'none'" in policy
    assert answer.headers["Cache-Control"] == "no-cache"


async def test_a_delete_answers_204_and_then_404(client: Client) -> None:
    await put(client, "a")
    answer = await ask(client, "DELETE", "/v1/kv/a")
    assert (answer.status, answer.body, answer.revision) == (204, b"", 2)
    for method in ("DELETE", "GET"):
        assert problem(await ask(client, method, "/v1/kv/a")) == (404, "key_not_found")


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("a/b//c", "a/b//c"),
        ("a%2Fb", "a/b"),
        ("%C3%A9", "é"),
        ("%25", "%"),
        ("a%00%0A", "a\0\n"),
        (".%2e", ".."),
        ("a%20+", "a +"),
        ("k" * 511, "k" * 511),
    ],
)
async def test_any_utf_8_is_a_key(server: Server, target: str, key: str) -> None:
    assert (await server.exchange(message("PUT", f"/v1/kv/{target}", b"1", JSON))) is not None
    scanned = await server.request("GET", "/v1/kv")
    assert [item["key"] for item in scanned.json()["items"]] == [key]
    assert (await server.request("GET", f"/v1/kv/{target}")).body == b"1"
    assert (await server.request("DELETE", f"/v1/kv/{target}")).status == 204


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
@pytest.mark.parametrize("target", ["%FF", "%", "%zz", "a%ED%A0%80", "k" * 512])
async def test_a_malformed_key_is_refused(server: Server, method: str, target: str) -> None:
    answer = await server.exchange(message(method, f"/v1/kv/{target}", b"1"))
    assert answer is not None
    assert problem(answer) == (400, "invalid_key")
    assert await server.proves_itself() == 1


@pytest.mark.parametrize("method", ["POST", "PATCH", "OPTIONS"])
async def test_other_methods_get_405_and_allow(client: Client, method: str) -> None:
    for target, allowed in (
        ("/v1/kv/a", {"GET", "HEAD", "PUT", "DELETE"}),
        ("/v1/kv", {"GET", "HEAD", "DELETE"}),
    ):
        answer = await ask(client, method, target, b"")
        assert problem(answer) == (405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(",")) == allowed


# -- what may be stored --


@pytest.mark.parametrize("value", [b"", b"{", b"{} {}", b"NaN", b'"\xff"', b"01", b"[" * 100_000])
@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON ;charset=utf-8"])
async def test_a_value_that_is_not_its_json_content_type_is_refused(
    client: Client, value: bytes, content_type: str
) -> None:
    answer = await ask(client, "PUT", "/v1/kv/a", value, {"Content-Type": content_type})
    assert problem(answer) == (400, "invalid_request")
    assert answer.revision == 0


@pytest.mark.parametrize("content_type", ["", "x" * 256, "text/plain; title=é", "a\tb"])
async def test_a_content_type_that_is_no_header_is_refused(server: Server, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    answer = await server.exchange(message("PUT", "/v1/kv/a", b"1", headers))
    assert answer is not None
    assert problem(answer) == (400, "invalid_request")
    assert await server.proves_itself() == 1


@pytest.mark.parametrize("settings", [Settings(max_value_size=10, max_body_size=20)])
@pytest.mark.parametrize(("size", "code"), [(11, "value_too_large"), (21, "body_too_large")])
async def test_a_value_over_its_limit_is_refused(client: Client, size: int, code: str) -> None:
    assert (await ask(client, "PUT", "/v1/kv/a", b"." * 10)).status == 201
    assert problem(await ask(client, "PUT", "/v1/kv/a", b"." * size)) == (413, code)
    assert (await ask(client, "GET", "/v1/kv/a")).body == b"." * 10


# -- preconditions --


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("match", ['"1"', "*", '"7", "1"', '"x","1"', ' "1" '])
async def test_a_write_with_a_matching_if_match_is_done(
    client: Client, method: str, match: str
) -> None:
    await put(client, "a")
    answer = await written(client, method, If_Match=match)
    assert (answer.status, answer.revision) == ({"PUT": 200, "DELETE": 204}[method], 2)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    "match", ["2", 'W/"1"', "-1", "²", DIGITS, "x", "", "01", "x,1,y", "1-", "1-x"]
)
async def test_a_write_with_another_if_match_is_refused(
    client: Client, method: str, match: str
) -> None:
    await put(client, "a")
    quoted = match if match.endswith('"') else f'"{match}"'
    answer = await written(client, method, If_Match=quoted)
    assert problem(answer) == (412, "precondition_failed")
    assert answer.revision == 1


NO_TAGS = [
    "",
    " ",
    ",",
    "7",
    '"7',
    '7"',
    "W/7",
    'w/"7"',
    '"7" "8"',
    '"7";',
    '"7 8"',
    '*, "7"',
    '"7", *',
    "**",
]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET", "HEAD"])
@pytest.mark.parametrize("match", NO_TAGS)
async def test_what_is_no_list_of_entity_tags_is_refused_and_says_how_one_is_written(
    client: Client, method: str, match: str
) -> None:
    await put(client, "a")
    answer = await written(client, method, If_Match=match)
    assert (answer.status, answer.revision) == (400, 1)
    if method != "HEAD":
        assert "in double quotes" in answer.json()["detail"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET"])
async def test_several_lines_of_if_match_are_one_list(client: Client, method: str) -> None:
    await put(client, "a")
    for lines, done in ((['"7"', '"8"'], False), (['"7"', '"1"'], True)):
        headers = CIMultiDict(("If-Match", line) for line in lines)
        answer = await ask(client, method, "/v1/kv/a", b"" if method == "PUT" else None, headers)
        assert (answer.status in {200, 204}) is done
        assert answer.status == 412 or done


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("match", "none_match", "status"),
    [
        ('"1"', None, 200),
        ("*", None, 200),
        ('"2"', None, 412),
        ('W/"1"', None, 412),
        ('"1"', '"1"', 304),
        ('"1"', 'W/"1"', 304),
        ('"1"', '"2"', 200),
        # If-Match comes first (RFC 9110, 13.2.2).
        ('"2"', '"1"', 412),
        ('"2"', "*", 412),
    ],
)
async def test_a_read_honours_if_match_and_then_if_none_match(
    client: Client, method: str, match: str, none_match: str | None, status: int
) -> None:
    await put(client, "a")
    headers = {"If-Match": match} | ({} if none_match is None else {"If-None-Match": none_match})
    answer = await ask(client, method, "/v1/kv/a", headers=headers)
    assert (answer.status, answer.revision) == (status, 1)
    # The key is missing whatever the precondition says (13.2.1).
    assert (await ask(client, method, "/v1/kv/b", headers=headers)).status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("match", ["*", '"1"', '"0"'])
async def test_a_missing_key_matches_nothing(client: Client, method: str, match: str) -> None:
    assert problem(await written(client, method, If_Match=match)) == (412, "precondition_failed")
    await put(client, "a")
    await ask(client, "DELETE", "/v1/kv/a")
    assert problem(await written(client, method, If_Match=match)) == (412, "precondition_failed")


async def test_if_none_match_star_creates_and_never_replaces(client: Client) -> None:
    assert (await written(client, If_None_Match="*")).status == 201
    assert problem(await written(client, If_None_Match="*")) == (412, "precondition_failed")
    await ask(client, "DELETE", "/v1/kv/a")
    again = await written(client, If_None_Match=" * ")
    assert (again.status, again.headers["ETag"]) == (201, '"3"')


@pytest.mark.parametrize("headers", [{"If_None_Match": '"1"'}, {"If_None_Match": "*", "If_Match": "*"}])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_malformed_precondition_is_refused(
    client: Client, headers: dict[str, str], method: str
) -> None:
    await put(client, "a")
    assert problem(await written(client, method, **headers)) == (400, "invalid_request")


async def test_a_key_that_has_expired_matches_nothing_and_can_be_created(
    client: Client, clock: FakeClock
) -> None:
    await ask(client, "PUT", "/v1/kv/a?ttl=1", b"old")
    clock.now += 1000
    assert problem(await written(client, If_Match='"1"')) == (412, "precondition_failed")
    assert (await written(client, If_None_Match="*")).status == 201


@pytest.mark.parametrize("known", ['"1"', "*", 'W/"1"', '"7", W/"1"'])
async def test_a_read_with_the_current_etag_gets_304(client: Client, known: str) -> None:
    await put(client, "a")
    for method in ("GET", "HEAD"):
        answer = await ask(client, method, "/v1/kv/a", headers={"If-None-Match": known})
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["ETag"] == '"1"'


@pytest.mark.parametrize("known", ['"2"', f'"{DIGITS}"', '"01"', '"1x"', '"²"', '"x,1"'])
async def test_a_read_with_another_etag_gets_the_value(client: Client, known: str) -> None:
    await put(client, "a")
    answer = await ask(client, "GET", "/v1/kv/a", headers={"If-None-Match": known})
    assert (answer.status, answer.body) == (200, b"1")


# -- time to live --


@pytest.mark.parametrize("ttl", ["0.001", "1", "2.5", "1e3", str(YEAR)])
async def test_a_key_expires_after_its_ttl(client: Client, clock: FakeClock, ttl: str) -> None:
    await ask(client, "PUT", f"/v1/kv/a?ttl={ttl}", b"1", JSON)
    clock.now += int(float(ttl) * 1000) - 1
    assert (await ask(client, "GET", "/v1/kv/a")).status == 200
    assert await keys(client) == ["a"]
    clock.now += 1
    assert problem(await ask(client, "GET", "/v1/kv/a")) == (404, "key_not_found")
    assert problem(await ask(client, "DELETE", "/v1/kv/a")) == (404, "key_not_found")
    assert await keys(client) == []
    assert (await put(client, "a")).status == 201


async def test_an_expiry_is_shown_and_a_new_value_has_none(client: Client, clock: FakeClock) -> None:
    await ask(client, "PUT", "/v1/kv/a?ttl=1.5", b"1", JSON)
    ends = "2023-11-14T22:13:21.500Z"
    assert (await ask(client, "GET", "/v1/kv/a")).headers["Kvactor-Expires-At"] == ends
    (item,) = (await ask(client, "GET", "/v1/kv")).json()["items"]
    assert item["expires_at"] == ends
    await put(client, "a", 2)
    clock.now += 2000
    answer = await ask(client, "GET", "/v1/kv/a")
    assert (answer.status, answer.body) == (200, b"2")
    assert "Kvactor-Expires-At" not in answer.headers


@pytest.mark.parametrize(
    "query",
    [
        "ttl=0",
        "ttl=-1",
        "ttl=nan",
        "ttl=inf",
        "ttl=",
        "ttl=soon",
        f"ttl={YEAR + 1}",
        f"ttl={DIGITS}",
        "ttl=1&ttl=1",
        "ttl=%FF",
        "TTL=1",
        "x=",
        "&".join(f"{number}=" for number in range(101)),
    ],
)
async def test_a_bad_query_stores_nothing(client: Client, query: str) -> None:
    answer = await ask(client, "PUT", f"/v1/kv/a?{query}", b"1")
    assert problem(answer) == (400, "invalid_request")
    assert answer.revision == 0


# -- within a transaction --


async def test_a_transaction_sees_its_own_writes_and_nobody_else_does(client: Client) -> None:
    await put(client, "a", "old")
    within = await opened(client)
    answer = await put(client, "a", "new", within)
    assert answer.json() == {"revision": None}
    assert "ETag" not in answer.headers
    assert (await ask(client, "GET", "/v1/kv/a", within=within)).json() == "new"
    assert (await ask(client, "GET", "/v1/kv/a")).json() == "old"
    assert (await ask(client, "DELETE", "/v1/kv/a", within=within)).status == 204
    for method in ("GET", "HEAD", "DELETE"):
        assert (await ask(client, method, "/v1/kv/a", within=within)).status == 404
    assert (await ask(client, "GET", "/v1/kv/a")).json() == "old"
    assert (await commit(client, within)).revision == 2
    assert (await ask(client, "GET", "/v1/kv/a")).status == 404


async def test_the_etag_of_a_draft_never_comes_back_for_another_value(client: Client) -> None:
    tags: list[str] = []
    for within in (await opened(client), await opened(client)):
        for step in ("begin", "rollback", "begin", "commit"):
            for key in ("a", "b", "a"):
                await put(client, key, len(tags), within)
                for tag in tags:
                    known = {"If-None-Match": tag}
                    assert (
                        await ask(client, "GET", f"/v1/kv/{key}", None, known, within)
                    ).status == 200
                got = await ask(client, "GET", f"/v1/kv/{key}", within=within)
                assert got.headers["Vary"] == "Kvactor-Transaction"
                tags.append(got.headers["ETag"])
                known = {"If-None-Match": f'"7", {tags[-1]}'}
                assert (await ask(client, "GET", f"/v1/kv/{key}", None, known, within)).status == 304
            await ask(client, "POST", f"/v1/transactions/{within}/{step}")
        assert within not in "".join(tags)
        await commit(client, within)
    assert len(set(tags)) == len(tags)
    assert (await ask(client, "GET", "/v1/kv/a", headers={"If-None-Match": tags[-1]})).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_if_match_with_the_etag_of_a_draft_works_within_its_transaction_alone(
    client: Client, method: str
) -> None:
    within, other = await opened(client), await opened(client)
    for transaction in (within, other):
        await put(client, "a", 1, transaction)
    tag = (await ask(client, "GET", "/v1/kv/a", within=within)).headers["ETag"]
    body = b"2" if method == "PUT" else None
    match = {"If-Match": tag}
    for where in (other, None):
        answer = await ask(client, method, "/v1/kv/a", body, match, where)
        assert problem(answer) == (412, "precondition_failed")
    for where, status in ((other, 412), (within, 200)):
        assert (await ask(client, "GET", "/v1/kv/a", None, match, where)).status == status
    assert (await ask(client, method, "/v1/kv/a", body, match, within)).status in {200, 204}
    again = await ask(client, method, "/v1/kv/a", body, match, within)
    assert problem(again) == (412, "precondition_failed")


async def test_a_value_written_in_a_transaction_is_the_same_after_the_commit(
    client: Client, clock: FakeClock
) -> None:
    within = await opened(client)
    await ask(client, "PUT", "/v1/kv/a?ttl=5", b"<p>", {"Content-Type": "text/html"}, within)
    before = await ask(client, "GET", "/v1/kv/a", within=within)
    await commit(client, within)
    after = await ask(client, "GET", "/v1/kv/a")
    assert after.body == before.body == b"<p>"
    for name in ("Content-Type", "Kvactor-Expires-At", "Content-Security-Policy"):
        assert after.headers[name] == before.headers[name]
    assert after.headers["ETag"] == '"1"'
    clock.now += 5000
    assert (await ask(client, "GET", "/v1/kv/a")).status == 404


async def test_preconditions_see_the_transactions_own_writes(client: Client) -> None:
    within = await opened(client)
    assert (await written(client, within=within, If_None_Match="*")).status == 201
    failed = await written(client, within=within, If_None_Match="*")
    assert problem(failed) == (412, "precondition_failed")
    draft = (await ask(client, "GET", "/v1/kv/a", within=within)).headers["ETag"]
    assert (await written(client, within=within, If_Match=draft)).status == 200
    assert (await written(client, "DELETE", within, If_Match="*")).status == 204
    assert problem(await written(client, within=within, If_Match="*")) == (412, "precondition_failed")
    assert (await written(client, within=within, If_None_Match="*")).status == 201
    assert (await commit(client, within)).status == 200
    assert (await ask(client, "GET", "/v1/kv/a")).body == b"new"


@pytest.mark.parametrize("headers", [{"If_None_Match": "*"}, {"If_Match": "*"}, {"If_Match": '"1"'}])
async def test_a_precondition_is_a_read_whether_it_holds_or_not(
    client: Client, headers: dict[str, str]
) -> None:
    await put(client, "a")
    within = await opened(client)
    await written(client, within=within, **headers)
    await put(client, "b", within=within)
    await put(client, "a", "by somebody else")
    assert problem(await commit(client, within)) == (409, "transaction_conflict")
    assert await keys(client) == ["a"]


async def test_a_write_without_a_precondition_is_no_read(client: Client) -> None:
    within = await opened(client)
    await put(client, "a", "first", within)
    await put(client, "a", "by somebody else")
    assert (await commit(client, within)).status == 200
    assert (await ask(client, "GET", "/v1/kv/a")).json() == "first"


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
async def test_an_unknown_transaction_is_not_found(client: Client, method: str) -> None:
    answer = await ask(client, method, "/v1/kv/a", within="nobody's")
    assert answer.status == 404
    if method != "HEAD":
        assert problem(answer) == (404, "transaction_not_found")


async def test_the_shared_transaction_is_not_seen_by_v1(client: Client) -> None:
    await put(client, "a", "old")
    await ask(client, "POST", "/begin")
    await ask(client, "POST", "/set", {"key": "a", "value": "new"})
    assert (await ask(client, "GET", "/v1/kv/a")).json() == "old"
    await ask(client, "POST", "/commit")
    assert (await ask(client, "GET", "/v1/kv/a")).json() == "new"


# -- two views of one store --


@pytest.mark.parametrize("value", [b"{}", b'"text"', b"0", b"false", b"12345678901234567890123", b'""'])
async def test_a_value_of_the_simple_routes_is_json_in_v1(client: Client, value: bytes) -> None:
    stored = await ask(client, "POST", "/set", b'{"key": "a/b", "value": %b}' % value)
    assert stored.json() == {"status": "ok"}
    answer = await ask(client, "GET", "/v1/kv/a/b")
    assert (answer.body, answer.headers["Content-Type"]) == (value, "application/json")
    assert answer.headers["ETag"] == f'"{stored.revision}"'


@pytest.mark.parametrize(
    ("content_type", "value", "shown"),
    [
        ("application/json", b'{"n": [1, null]}', {"value": {"n": [1, None]}}),
        ("application/json", b"null", {"value": None}),
        ("application/json; charset=utf-8", b"1", {"value": 1}),
        ("text/plain", 'say "é"\n'.encode(), {"value": 'say "é"\n'}),
        ("text/html; charset=utf-8", b"<p>", {"value": "<p>"}),
        ("text/plain", b"\xff", {"value_base64": base64.b64encode(b"\xff").decode()}),
        ("application/octet-stream", b"text", {"value_base64": base64.b64encode(b"text").decode()}),
        ("image/png", b"", {"value_base64": ""}),
    ],
)
async def test_a_value_of_any_type_is_shown_alike_by_get_scan_batch_and_feed(
    client: Client, content_type: str, value: bytes, shown: dict[str, object]
) -> None:
    await ask(client, "PUT", "/v1/kv/a", value, {"Content-Type": content_type})
    got = await ask(client, "GET", "/get/a")
    assert got.json() == {"key": "a", **shown}
    item = {"key": "a", "revision": 1, "content_type": content_type, "expires_at": None, **shown}
    assert (await ask(client, "GET", "/v1/kv")).json()["items"] == [item]
    batch = {"operations": [{"op": "get", "key": "a"}, {"op": "range"}]}
    results = (await ask(client, "POST", "/v1/batch", batch)).json()["results"]
    assert results == [item, {"items": [item], "more": False}]
    (event,) = (await ask(client, "GET", "/v1/changes")).json()["revisions"]
    assert event["changes"] == [item]


async def test_a_key_deleted_in_v1_is_gone_in_the_simple_routes_and_back(client: Client) -> None:
    await put(client, "a")
    await ask(client, "POST", "/set", {"key": "b", "value": 1})
    assert (await ask(client, "DELETE", "/delete/a")).status == 200
    assert (await ask(client, "DELETE", "/v1/kv/b")).status == 204
    assert (await ask(client, "GET", "/v1/kv/a")).status == 404
    assert (await ask(client, "GET", "/get/b")).status == 404
