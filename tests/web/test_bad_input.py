"""Bad requests: each gets a clear 4xx, or a closed connection where HTTP has no response.
After each, nothing has changed, no fault is logged, and other clients are served.
"""

import gzip
import logging
from collections.abc import Iterator

import pytest

from kvactor.settings import Settings
from tests.web.conftest import Answer, Server, message

MiB = 1024 * 1024
GOOD = b'{"key": "a", "value": 1}'


@pytest.fixture(autouse=True)
def no_fault_of_the_servers(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """At the end of each test, kvactor's log has no error."""
    yield
    faults = [one for one in caplog.get_records("call") if one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in faults if one.name.startswith("kvactor")] == []


async def refused(server: Server, data: bytes, *statuses: int) -> Answer:
    """Send bytes, expect one of `statuses`, and that nothing else has happened."""
    answer = await server.exchange(data)
    assert answer is not None
    assert answer.status in statuses
    assert await server.proves_itself() == 1
    return answer


def is_simple_error(answer: Answer) -> bool:
    """Is it an error in the shape of the simple routes, with the revision?"""
    body = answer.json()
    return set(body) == {"error"} and bool(body["error"]) and answer.revision == 0


def with_key(key: bytes) -> bytes:
    return b'{"key": %b, "value": 1}' % key


def with_value(value: bytes) -> bytes:
    return b'{"key": "a", "value": %b}' % value


# -- bodies --

NOT_JSON = {
    "nothing": b"",
    "spaces": b" \n",
    "text": b"hello",
    "a form": b"key=a&value=1",
    "single quotes": b"{'key': 'a', 'value': 1}",
    "a comment": GOOD + b" // good",
    "something behind": GOOD + b"x",
    "a second body": GOOD + GOOD,
    "a trailing comma": b'{"key": "a", "value": 1,}',
    "cut off": GOOD[:-1],
    "cut off in a string": b'{"key": "a',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "zero bytes": bytes(24),
    "gzip": gzip.compress(GOOD),
    "NaN": with_value(b"NaN"),
    "Infinity": with_value(b"Infinity"),
    "-Infinity within": with_value(b"[-Infinity]"),
    "a number with a leading zero": with_value(b"01"),
    "a number without an end": with_value(b"1."),
    "a sign alone": with_value(b"-"),
    "a hexadecimal number": with_value(b"0x10"),
    "half a word": with_value(b"tru"),
    "no value behind the colon": with_value(b""),
    "a bad escape": with_value(rb'"\x41"'),
    "half an escape": with_value(rb'"\u12"'),
    "a control character": with_value(b'"\n"'),
    "a lone high surrogate in the key": with_key(rb'"\ud800"'),
    "a lone low surrogate in the key": with_key(rb'"\udc00"'),
    "two high surrogates in the key": with_key(rb'"\ud800\ud800"'),
    "a lone high surrogate in the value": with_value(rb'"\ud800"'),
    "a lone low surrogate in the value": with_value(rb'"\udc00"'),
    "a lone surrogate deep in the value": with_value(rb'[{"\udfff": "\ud800 more"}]'),
    "invalid UTF-8 in the key": with_key(b'"\xff"'),
    "invalid UTF-8 in the value": with_value(b'"\xc3"'),
    "invalid UTF-8 deep in the value": with_value(b'[{"a": "\xfe"}]'),
    "invalid UTF-8 where nobody looks": b'{"x": "\xff", "key": "a", "value": 1}',
    "an overlong encoding": with_key(b'"\xc0\xaf"'),
    "a surrogate encoded as UTF-8": with_value(b'"\xed\xa0\x80"'),
    "arrays nested 100,000 deep": with_value(b"[" * 100_000 + b"]" * 100_000),
    "objects nested 100,000 deep": with_value(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "nesting without an end": with_value(b"[" * 100_000),
    "nesting where nobody looks": b'{"x": %b}' % (b"[" * 100_000 + b"]" * 100_000),
}

NOT_UNDERSTOOD = {
    "an array": b"[]",
    "a string": b'"key"',
    "a number": b"1",
    "null": b"null",
    "a key that is a number": with_key(b"1"),
    "a key that is a boolean": with_key(b"true"),
    "a key that is an array": with_key(b'["a"]'),
    "a key that is an object": with_key(b"{}"),
    "a key of 512 bytes": with_key(b'"%b"' % (b"k" * 512)),
    "a key of 256 characters and 512 bytes": with_key(b'"%b"' % ("é" * 256).encode()),
    "a key of a million bytes": with_key(b'"%b"' % (b"k" * 1_000_000)),
}

TOO_LARGE = {
    "a value of a byte over 1 MiB": with_value(b'"%b"' % (b"a" * (MiB - 1))),
    "a number of 2 MiB": with_value(b"1" * 2 * MiB),
    "a body of 10 MiB": with_value(b'"%b"' % (b"a" * 10 * MiB)),
    "10 MiB that are no JSON": bytes(10 * MiB),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_a_body_that_is_not_json_gets_400(server: Server, body: bytes) -> None:
    assert is_simple_error(await refused(server, message("POST", "/set", body), 400))


@pytest.mark.parametrize("body", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
async def test_a_body_of_another_type_gets_400(server: Server, body: bytes) -> None:
    assert is_simple_error(await refused(server, message("POST", "/set", body), 400))


@pytest.mark.parametrize("body", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_body_or_value_over_its_limit_gets_413(server: Server, body: bytes) -> None:
    assert is_simple_error(await refused(server, message("POST", "/set", body), 413))


async def test_a_missing_body_gets_400(server: Server) -> None:
    assert is_simple_error(await refused(server, message("POST", "/set"), 400))


async def test_a_compressed_body_gets_a_4xx_and_is_not_decompressed(server: Server) -> None:
    data = message("POST", "/set", gzip.compress(GOOD), {"Content-Encoding": "gzip"})
    assert is_simple_error(await refused(server, data, 400, 415))


# -- paths --


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "key",
    [
        pytest.param("%FF", id="a byte that is not UTF-8"),
        pytest.param("a%C3", id="half a character"),
        pytest.param("%C0%AF", id="an overlong encoding"),
        pytest.param("%ED%A0%80", id="a surrogate"),
        pytest.param("%zz", id="an escape that is none"),
        pytest.param("a%", id="a lone percent sign"),
        pytest.param("a%4", id="half an escape"),
        pytest.param("k" * 512, id="512 bytes"),
        pytest.param("%C3%A9" * 256, id="256 characters, 512 bytes"),
        pytest.param("k" * 8000, id="8,000 bytes"),
    ],
)
async def test_a_malformed_key_in_a_path_gets_400(server: Server, method: str, key: str) -> None:
    target = f"/{method.lower()}/{key}"
    assert is_simple_error(await refused(server, message(method, target), 400))


@pytest.mark.parametrize("target", ["/get", "/get/", "/delete/", "/", "//get/a", "/set/a", "/Get/a"])
async def test_a_path_without_a_route_gets_404(server: Server, target: str) -> None:
    assert is_simple_error(await refused(server, message("GET", target), 404))


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", "/set", {"POST"}),
        ("PUT", "/set", {"POST"}),
        ("POST", "/get/a", {"GET"}),
        ("HEAD", "/get/a", {"GET"}),
        ("PROPFIND", "/get/a", {"GET"}),
        ("GET", "/delete/a", {"DELETE"}),
        ("GET", "/begin", {"POST"}),
        ("DELETE", "/rollback", {"POST"}),
        ("PATCH", "/commit", {"POST"}),
    ],
)
async def test_a_wrong_method_gets_405_and_allow(
    server: Server, method: str, target: str, allowed: set[str]
) -> None:
    # HTTP has no body in an answer to HEAD, so none of them is read here.
    connection = await server.send(message(method, target))
    head = await connection.head()
    assert head is not None
    assert (head.status, head.revision) == (405, 0)
    assert set(head.headers["Allow"].replace(" ", "").split(",")) == allowed
    assert await server.proves_itself() == 1


async def test_a_wrong_method_on_v1_gets_a_problem_document(server: Server) -> None:
    answer = await refused(server, message("PUT", "/v1/transactions"), 405)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.json()["code"], answer.headers["Allow"]) == ("method_not_allowed", "POST")


@pytest.mark.parametrize("path", ["/set", "/get/a", "/delete/a", "/healthz"])
async def test_a_target_without_a_path_is_refused(server: Server, path: str) -> None:
    assert (await server.request("GET", f"http://localhost{path}")).status == 400
    assert await server.proves_itself() == 1


# -- steps out of order --


async def test_a_commit_without_a_transaction_gets_400(server: Server) -> None:
    await server.request("POST", "/begin")
    assert (await server.request("POST", "/commit")).status == 200
    again = await refused(server, message("POST", "/commit"), 400)
    assert again.json() == {"error": "No transaction to commit"}


async def test_a_33rd_begin_gets_400_and_the_32_stay_open(server: Server) -> None:
    for _ in range(32):
        assert (await server.request("POST", "/begin")).status == 200
    assert is_simple_error(await server.request("POST", "/begin"))
    for _ in range(32):
        assert (await server.request("POST", "/rollback")).status == 200
    assert is_simple_error(await refused(server, message("POST", "/rollback"), 400))


async def test_an_unknown_transaction_gets_404(server: Server) -> None:
    headers = {"Kvactor-Transaction": "nobody's"}
    assert is_simple_error(await refused(server, message("POST", "/set", GOOD, headers), 404))


async def test_a_transaction_id_of_arbitrary_bytes_gets_404(server: Server) -> None:
    data = b"GET /get/a HTTP/1.1\r\nHost: localhost\r\nKvactor-Transaction: \xff\xfe\r\n\r\n"
    assert is_simple_error(await refused(server, data, 404))


async def test_an_unknown_expectation_gets_417(server: Server) -> None:
    data = message("POST", "/set", GOOD, {"Expect": "tea"})
    assert is_simple_error(await refused(server, data, 417))


@pytest.mark.parametrize("settings", [Settings(max_body_size=1000)])
async def test_a_small_max_body_size_is_enforced(server: Server) -> None:
    body = with_value(b'"%b"' % (b"a" * 1000))
    assert is_simple_error(await refused(server, message("POST", "/set", body), 413))
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    data = message("POST", "/set", None, {"Transfer-Encoding": "chunked"}) + chunked
    answer = await server.exchange(data)
    assert answer is not None
    assert answer.status == 413
