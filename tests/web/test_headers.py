"""Headers of requests: those that decide are understood, or the request is refused; none of them, and
nothing else of a request's head, is ever a fault of the server's.
"""

import logging
from collections.abc import Iterator

import pytest
from aiohttp import web

from kvactor.web.app import TAGS
from kvactor.web.errors import has_problems
from kvactor.web.guard import DECISIVE, ONCE
from kvactor.web.negotiation import prefers, qualities
from kvactor.web.routes import READS, Route
from tests.web.conftest import Answer, Client, Server
from tests.web.v1.conftest import ask, put

#: Of each route's parameters, a value.
PARAMETERS = {"{key}": "a", "{id}": "nobodys"}
#: Headers that something here reads, in some place.
READ = sorted({*ONCE, *DECISIVE, "accept", "content-encoding", "content-length", "expect"})
ODD = {
    "a byte that is not UTF-8": b"\xff",
    "a URL of one": b"http://\xff",
    "UTF-8": "é😀".encode(),
    "NUL": b"a\0b",
    "control characters": b"a\x01\x7f\x1b[0m",
    "nothing": b"",
    "much": b"a" * 8000,
    "much that is not UTF-8": b"\xff" * 8000,
    "quotes": b'"' * 3000,
    "escaped quotes": b'"' + b'\\"' * 3000,
    "spaces": b"x;" + b" ;" * 2000 + b" x",
}

#: The value that goes to all routes; the others go to some, for the sake of time.
EVERYWHERE = b"\xff"
SOME = ("/v1/kv/{key}", "/v1/kv", "/v1/batch", "/v1/transactions/{id}", "/set", "/docs")


@pytest.fixture(autouse=True)
def no_fault_of_the_servers(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """At the end of each test, the log has no error."""
    yield
    assert [
        one.getMessage() for one in caplog.get_records("call") if one.levelno >= logging.ERROR
    ] == []


def targets(app: web.Application) -> list[tuple[Route, str]]:
    """Return all routes, each with a target."""
    found = []
    for routes in app[TAGS].values():
        for route in routes:
            target = route.name
            for name, text in PARAMETERS.items():
                target = target.replace(name, text)
            found.append((route, target))
    return found


def head(method: bytes, target: bytes, *lines: bytes) -> bytes:
    """Return a request without a body, after which the server closes the connection."""
    common = (b"Host: localhost",) if not any(one.lower().startswith(b"host:") for one in lines) else ()
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *common, *lines, b"", b""])


async def status_of(server: Server, data: bytes) -> int:
    """Return the status of the response to some bytes."""
    connection = await server.send(data)
    answer = await connection.head()
    await connection.close()
    assert answer is not None
    return answer.status


# -- never a fault --


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
async def test_no_value_of_a_header_is_a_fault_of_the_servers(
    server: Server, app: web.Application, value: bytes
) -> None:
    for route, target in targets(app):
        # A stream does not end; HEAD is parsed as GET is.
        if route.name == "/v1/changes" or route.method == "HEAD":
            continue
        if value != EVERYWHERE and route.name not in SOME:
            continue
        for name in READ:
            line = name.encode() + b": " + value
            for lines in ((line,), (line, line)):
                status = await status_of(server, head(route.method.encode(), target.encode(), *lines))
                assert status < 500, (route.method, route.name, name, len(lines))


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
async def test_no_target_is_a_fault_of_the_servers(
    server: Server, app: web.Application, value: bytes
) -> None:
    for target in (b"/" + value, b"/get/" + value, b"/v1/" + value, b"/v1/transactions/" + value):
        for query in (b"", b"?", b"?x=" + value, b"?" + value):
            for method in (b"GET", b"PUT", b"POST", b"PATCH", b"\xff", b"get", b"A" * 8000):
                assert await status_of(server, head(method, target + query)) < 500


async def test_an_origin_that_is_no_unicode_is_refused_like_any_other(server: Server) -> None:
    for target, member in ((b"/get/a", "error"), (b"/v1/kv/a", "detail")):
        answer = await server.exchange(head(b"GET", target, b"Origin: http://\xff"))
        assert answer is not None
        assert answer.status == 403
        assert answer.json()[member] == "Pages of http://? may not speak to this server."


async def test_an_error_quotes_a_bounded_part_of_a_request(server: Server) -> None:
    answer = await server.exchange(head(b"GET", b"/v1/kv/a", b"Origin: " + b"x" * 8000))
    assert answer is not None
    assert (answer.status, len(answer.json()["detail"])) == (403, 1000)


# -- once --


@pytest.mark.parametrize("name", sorted(ONCE))
async def test_a_header_that_comes_once_is_refused_if_it_comes_twice(server: Server, name: str) -> None:
    line = name.encode() + b": localhost"
    for first, second in ((line, line), (line.upper(), line)):
        for method, target in ((b"PUT", b"/v1/kv/a"), (b"GET", b"/get/a"), (b"GET", b"/nowhere")):
            data = head(method, target, b"Content-Length: 0", first, second)
            assert await status_of(server, data) == 400
    assert await server.proves_itself() == 1


# -- understood, or refused --


async def test_a_header_that_decides_is_refused_where_it_would_be_ignored(
    client: Client, app: web.Application
) -> None:
    values = {"if-none-match": "*", "if-match": '"1"', "content-range": "bytes 0-1/2"}
    for route, target in targets(app):
        taken = {header.name.lower() for header in route.headers}
        for name in DECISIVE - taken:
            if name == "if-none-match" and route.method in READS:
                continue  # that it holds is right: there is no entity tag
            answer = await ask(client, route.method, target, None, {name: values.get(name, "x")})
            assert answer.status == 400, (route.method, route.name, name)
            if route.method != "HEAD":
                body = answer.json()
                said = body["detail" if has_problems(route.path) else "error"]
                assert said == f"{route.method} {route.name} does not take the header {name.title()}."


async def test_a_query_is_refused_where_a_route_of_v1_has_none(
    client: Client, app: web.Application
) -> None:
    for route, target in targets(app):
        if route.path.startswith("/v1"):
            answer = await ask(client, route.method, target + "?other=1")
            assert answer.status == 400, (route.method, route.name)


async def test_a_part_of_a_value_is_not_stored_as_the_value(client: Client) -> None:
    headers = {"Content-Range": "bytes 0-4/10"}
    assert (await ask(client, "PUT", "/v1/kv/a", b"parts", headers)).status == 400
    assert (await ask(client, "GET", "/v1/kv/a")).status == 404


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "x", ""])
async def test_an_encoded_body_is_refused(server: Server, coding: str) -> None:
    for method, target in (("PUT", "/v1/kv/good"), ("POST", "/set"), ("POST", "/v1/batch")):
        answer = await server.request(method, target, {}, {"Content-Encoding": coding})
        assert answer.status == 415
    assert await server.proves_itself() == 1


async def test_a_body_that_says_that_it_is_not_encoded_is_stored(server: Server) -> None:
    answer = await server.request("PUT", "/v1/kv/a", 1, {"Content-Encoding": "Identity"})
    assert answer.status == 201


async def test_a_range_of_a_value_is_not_honoured_and_the_response_is_whole(client: Client) -> None:
    await put(client, "a", "value")
    answer = await ask(client, "GET", "/v1/kv/a", headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.json()) == (200, "value")


@pytest.mark.parametrize("target", ["/v1/kv/a", "/v1/kv", "/v1/kv/none", "/v1/kv?limit=0"])
async def test_what_depends_on_the_transaction_says_so_to_caches(client: Client, target: str) -> None:
    await put(client, "a")
    answer = await ask(client, "GET", target)
    assert answer.headers["Vary"] == "Kvactor-Transaction"


# -- fetch metadata --


def metadata(site: str, mode: str = "", destination: str = "") -> dict[str, str]:
    named = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
    return {name: text for name, text in named.items() if text}


def refused(answer: Answer) -> bool:
    """Is it refused because of its page? Nothing else may refuse it."""
    assert answer.status in {200, 403}
    return answer.status == 403


@pytest.mark.parametrize(
    ("site", "passes"),
    [
        ("same-origin", True),
        ("none", True),
        ("same-site", False),
        ("cross-site", False),
        ("Same-Origin", False),
        ("other", False),
        ("", False),
    ],
)
async def test_sec_fetch_site_decides_when_it_is_there(server: Server, site: str, passes: bool) -> None:
    for origin in ({}, {"Origin": "http://localhost"}, {"Origin": "http://elsewhere.example"}):
        for target in ("/v1/kv", "/v1/status", "/docs", "/healthz"):
            headers = {"Sec-Fetch-Site": site, **origin}
            assert refused(await server.request("GET", target, None, headers)) is not passes


async def test_the_name_in_host_is_checked_whatever_sec_fetch_site_says(server: Server) -> None:
    lines = (b"Host: elsewhere.example", b"Sec-Fetch-Site: same-origin")
    assert await status_of(server, head(b"GET", b"/v1/kv", *lines)) == 403


async def test_an_image_or_a_form_on_another_page_is_refused(server: Server) -> None:
    for mode, destination in (("no-cors", "image"), ("navigate", "document"), ("cors", "empty")):
        lines = [
            f"{name}: {text}".encode()
            for name, text in metadata("cross-site", mode, destination).items()
        ]
        assert await status_of(server, head(b"GET", b"/v1/kv", b"Host: a1.localhost", *lines)) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_page_of_another_origin_may_link_to_the_pages_of_the_api_alone(
    server: Server, site: str
) -> None:
    link = metadata(site, "navigate", "document")
    for target in ("/docs", "/openapi.json"):
        assert not refused(await server.request("GET", target, None, link))
    for target in ("/v1/kv", "/metrics", "/docs/rapidoc-min.js", "/v1/status"):
        assert refused(await server.request("GET", target, None, link))
    for others in (
        metadata(site, "navigate", "iframe"),
        metadata(site, "no-cors", "document"),
        metadata(site, "navigate"),
        metadata(site),
    ):
        assert refused(await server.request("GET", "/docs", None, others))


async def test_a_form_of_another_page_that_posts_to_a_page_is_refused(server: Server) -> None:
    link = metadata("cross-site", "navigate", "document")
    assert refused(await server.request("POST", "/docs", {}, link))


# -- Accept --

STREAM, JSON = "text/event-stream", "application/json"


@pytest.mark.parametrize(
    ("accept", "stream"),
    [
        ("", False),
        ("*/*", False),
        ("text/*", False),
        (STREAM, True),
        ("Text/Event-Stream", True),
        (" text/event-stream ;charset=utf-8 ", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream; Q=0.000", False),
        ("text/event-stream;q=0.001", True),
        ("text/event-stream;q=2", False),
        ("text/event-stream;q=x", False),
        ("text/event-stream;q=", False),
        ("text/event-streams", False),
        ("x-text/event-stream", False),
        ("text/event-stream/x", False),
        ("application/json, text/event-stream", True),
        ("application/json;q=0.9, text/event-stream", True),
        ("application/json, text/event-stream;q=0.9", False),
        ("application/*, text/event-stream;q=0.9", False),
        ("text/event-stream;q=0.9, */*", False),
        ("text/event-stream, */*;q=0.1", True),
        ('text/html;x=", text/event-stream", application/json', False),
        ('text/html;x="\\", text/event-stream;q=1"', False),
        ('text/html;x="unfinished, text/event-stream', False),
        ('text/html;x=",", text/event-stream', True),
        (",, text/event-stream,", True),
        ("text/event-stream;q=0, text/event-stream", True),
    ],
)
def test_a_stream_is_served_to_who_asks_for_it(accept: str, stream: bool) -> None:
    assert prefers(accept, STREAM, JSON) is stream


def test_qualities_are_numbers_from_0_to_1() -> None:
    assert qualities("A/b;Q=0.5, c/*, */*;q=1.000;x=y, e/f;q=1.5, g") == {
        "a/b": 0.5,
        "c/*": 1.0,
        "*/*": 1.0,
    }
