"""Malformed HTTP, and clients that stop in the middle of a request: each gets a 4xx or a
closed connection; others are served.
"""

import logging

import pytest

from kvactor.settings import Settings
from tests.web.conftest import Server, message

GOOD = b'{"key": "a", "value": 1}'
CHUNKED = {"Transfer-Encoding": "chunked"}


def with_fields(*fields: bytes, body: bytes = b"") -> bytes:
    """Return a POST /set with these header fields."""
    return b"\r\n".join([b"POST /set HTTP/1.1", b"Host: localhost", *fields, b"", body])


def with_line(line: bytes) -> bytes:
    """Return a request with this request line."""
    return line + b"\r\nHost: localhost\r\n\r\n"


BAD = {
    "garbage": b"\x00\x01\x02\xff\xfe\r\n\r\n",
    "text": b"hello?\r\n\r\n",
    "empty lines and a word": b"\r\n\r\n\r\nx\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(501),
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a Redis command": b"*1\r\n$4\r\nPING\r\n",
    "HTTP/3.7": with_line(b"GET /get/a HTTP/3.7"),
    "HTTP/0.9": b"POST /begin\r\n\r\n",
    "HTTP/0.9, said aloud": b"POST /begin HTTP/0.9\r\n\r\n",
    "HTTP without a version": with_line(b"GET /get/a HTTP/"),
    "another protocol": with_line(b"GET /get/a SIP/2.0"),
    "an unknown method": with_line(b"BREW /get/a HTTP/1.1"),
    "a method in small letters": with_line(b"get /get/a HTTP/1.1"),
    "a space in the path": with_line(b"GET /get/a b HTTP/1.1"),
    "raw bytes that are not UTF-8 in the path": with_line(b"GET /get/\xff\xfe HTTP/1.1"),
    "raw UTF-8 in the path": with_line("GET /get/é HTTP/1.1".encode()),
    "a zero byte in the path": with_line(b"GET /get/a\x00b HTTP/1.1"),
    "a star as the path": with_line(b"GET * HTTP/1.1"),
    "a path without a slash": with_line(b"GET get/a HTTP/1.1"),
    "an absolute target with half an address": with_line(b"GET http://[::1/get/a HTTP/1.1"),
    "an absolute target with a port that is none": with_line(b"GET http://a:99999/get/a HTTP/1.1"),
    "a request line of 20,000 bytes": with_line(b"GET /get/%b HTTP/1.1" % (b"a" * 20_000)),
    "a header field of 20,000 bytes": with_fields(b"X: " + b"a" * 20_000),
    "a header name of 20,000 bytes": with_fields(b"X" * 20_000 + b": a"),
    "20,000 header fields": with_fields(*[b"X: a"] * 20_000),
    "no Host": b"GET /get/a HTTP/1.1\r\n\r\n",
    "bare line feeds": b"POST /begin HTTP/1.1\nHost: localhost\n\n",
    "a space before the colon": with_fields(b"X : a"),
    "a header field without a name": with_fields(b": a"),
    "a header field without a colon": with_fields(b"X"),
    "a folded header field": with_fields(b"X: a", b" b"),
    "a zero byte in a header field": with_fields(b"X: a\x00b"),
    "a negative Content-Length": with_fields(b"Content-Length: -5"),
    "a signed Content-Length": with_fields(b"Content-Length: +24", body=GOOD),
    "a Content-Length that is a word": with_fields(b"Content-Length: all", body=GOOD),
    "a Content-Length beyond all bounds": with_fields(b"Content-Length: " + b"9" * 30, body=GOOD),
    "two Content-Lengths": with_fields(b"Content-Length: 24", b"Content-Length: 5", body=GOOD),
    "the same Content-Length twice": with_fields(*[b"Content-Length: 24"] * 2, body=GOOD),
    "Content-Length and chunks": with_fields(
        b"Content-Length: 24", b"Transfer-Encoding: chunked", body=b"18\r\n" + GOOD + b"\r\n0\r\n\r\n"
    ),
    "an unknown transfer coding": with_fields(b"Transfer-Encoding: tea", body=GOOD),
    "a chunk size that is none": message("POST", "/set", None, CHUNKED) + b"zz\r\n" + GOOD,
    "a negative chunk size": message("POST", "/set", None, CHUNKED) + b"-5\r\n" + GOOD,
    "a chunk size beyond all bounds": message("POST", "/set", None, CHUNKED)
    + b"f" * 17
    + b"\r\n"
    + GOOD,
    "a chunk longer than its size": message("POST", "/set", None, CHUNKED)
    + b"5\r\n"
    + GOOD
    + b"\r\n0\r\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
async def test_malformed_http_gets_400_and_a_closed_connection(server: Server, data: bytes) -> None:
    connection = await server.send(data)
    answer = await connection.answer()
    if answer is not None:
        assert answer.status == 400
        assert await connection.answer() is None
    assert await server.proves_itself() == 1
    assert (await server.request("POST", "/rollback")).status == 400


#: What follows a request, on the same connection, to be taken for a part of it by one of two servers.
SMUGGLED = message("POST", "/begin", b"")
CHUNKS = b"18\r\n" + GOOD + b"\r\n0\r\n\r\n"


def coded(coding: bytes, version: bytes = b"1.1") -> bytes:
    """Return a request in chunks with this field line."""
    return with_fields(coding, body=CHUNKS).replace(b"HTTP/1.1", b"HTTP/" + version)


def long(length: bytes) -> bytes:
    """Return a request with a body and this field line, or these."""
    return with_fields(length, body=GOOD)


def chunks(body: bytes) -> bytes:
    return with_fields(b"Transfer-Encoding: chunked", body=body)


AMBIGUOUS = {
    "a length, and chunks": with_fields(
        b"Content-Length: 4", b"Transfer-Encoding: chunked", body=CHUNKS
    ),
    "chunks, and a length": with_fields(
        b"Transfer-Encoding: chunked", b"Content-Length: 4", body=CHUNKS
    ),
    "a length, and a coding that is none": with_fields(
        b"Content-Length: 24", b"Transfer-Encoding: identity", body=GOOD
    ),
    "chunks in HTTP/1.0": coded(b"Transfer-Encoding: chunked", b"1.0"),
    "chunks, and then as it is": coded(b"Transfer-Encoding: chunked, identity"),
    "chunks twice": coded(b"Transfer-Encoding: chunked, chunked"),
    "two codings": coded(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "two codings, the other way round": coded(
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"
    ),
    "an empty coding": coded(b"Transfer-Encoding:"),
    "an empty coding, and chunks": coded(b"Transfer-Encoding:\r\nTransfer-Encoding: chunked"),
    "almost chunked": coded(b"Transfer-Encoding: xchunked"),
    "chunked with a parameter": coded(b"Transfer-Encoding: chunked;q=1"),
    "chunked in quotes": coded(b'Transfer-Encoding: "chunked"'),
    "chunked behind a vertical tab": coded(b"Transfer-Encoding: \x0bchunked"),
    "a space before the colon of a coding": coded(b"Transfer-Encoding : chunked"),
    "a folded coding": coded(b"Transfer-Encoding:\r\n chunked"),
    "a coding folded with a tab": coded(b"Transfer-Encoding:\r\n\tchunked"),
    "a folded length": long(b"Content-Length:\r\n 24"),
    "a list of lengths": long(b"Content-Length: 24, 24"),
    "a list of different lengths": long(b"Content-Length: 24, 5"),
    "an empty length": long(b"Content-Length:"),
    "a hexadecimal length": long(b"Content-Length: 0x18"),
    "a length with a space": long(b"Content-Length: 2 4"),
    "a length with an underscore": long(b"Content-Length: 2_4"),
    "a length with a zero byte": long(b"Content-Length: 24\x00"),
    "a length with a point": long(b"Content-Length: 24.0"),
    "a length with an exponent": long(b"Content-Length: 2e1"),
    "a length in other digits": long("Content-Length: ٢٤".encode()),
    "a length that is 24 in 64 bits": long(b"Content-Length: 18446744073709551640"),
    "a hexadecimal chunk size": chunks(b"0x" + CHUNKS),
    "a signed chunk size": chunks(b"+" + CHUNKS),
    "a space before a chunk size": chunks(b" " + CHUNKS),
    "a space behind a chunk size": chunks(CHUNKS.replace(b"18", b"18 ")),
    "an underscore in a chunk size": chunks(CHUNKS.replace(b"18", b"1_8")),
    "no chunk size": chunks(CHUNKS.replace(b"18", b"")),
    "a chunk size that is 24 in 64 bits": chunks(CHUNKS.replace(b"18", b"10000000000000018")),
    "a bare line feed behind a chunk size": chunks(CHUNKS.replace(b"18\r", b"18")),
    "a bare line feed behind a chunk": chunks(CHUNKS.replace(b"}\r\n", b"}\n")),
    "nothing behind a chunk": chunks(CHUNKS.replace(b"}\r\n", b"}")),
    "bare line feeds at the end": chunks(CHUNKS.replace(b"0\r\n\r\n", b"0\n\n")),
    "a bare line feed in a chunk's extension": chunks(CHUNKS.replace(b"18", b"18;a\nb")),
    "a bare carriage return in a chunk's extension": chunks(CHUNKS.replace(b"18", b"18;a\rb")),
    "a zero byte in a chunk's extension": chunks(CHUNKS.replace(b"18", b"18;a\x00")),
    "trailers without end": chunks(CHUNKS[:-2] + b"X: a\r\n" * 20_000 + b"\r\n"),
    "a trailer of 20,000 bytes": chunks(CHUNKS[:-2] + b"X: " + b"a" * 20_000 + b"\r\n\r\n"),
    "a bare carriage return in a field": long(b"X: a\rContent-Length: 24"),
    "bare carriage returns": b"POST /set HTTP/1.1\rHost: localhost\r\r",
    "a bare line feed behind the request line": b"POST /set HTTP/1.1\nHost: localhost\r\n\r\n",
    "a field before the first": b"POST /set HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "a zero byte in a field's name": with_fields(b"X\x00: a"),
    "a space in a field's name": with_fields(b"X Y: a"),
    "two hosts": with_fields(b"Host: localhost"),
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_a_request_with_an_ambiguous_end_is_refused_and_the_bytes_after_it_are_ignored(
    server: Server, data: bytes
) -> None:
    other = await server.send(message("GET", "/healthz"))
    assert await other.answer() is not None
    connection = await server.send(data + SMUGGLED)
    answer = await connection.answer()
    if answer is not None:
        assert answer.status == 400
        assert await connection.answer() is None
    await other.send(message("POST", "/rollback"))
    nothing_begun = await other.answer()
    assert nothing_begun is not None
    assert nothing_begun.status == 400
    assert await server.proves_itself() == 1


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity, chunked"])
async def test_a_body_in_an_unknown_transfer_coding_is_refused(server: Server, coding: str) -> None:
    fields = {"Transfer-Encoding": coding}
    answer = await server.exchange(message("PUT", "/v1/kv/a", None, fields) + CHUNKS)
    assert answer is None or answer.status == 400
    assert await server.proves_itself() == 1


async def test_chunk_extensions_of_any_length_are_ignored(server: Server) -> None:
    extended = CHUNKS.replace(b"18", b"18;" + b"a" * 1_000_000)
    answer = await server.exchange(message("POST", "/set", None, CHUNKED) + extended)
    assert answer is not None
    assert answer.status == 200
    assert (await server.get("a")).json() == {"key": "a", "value": 1}


async def test_garbage_after_a_good_request_gets_400_and_a_closed_connection(server: Server) -> None:
    connection = await server.send(message("POST", "/set", GOOD))
    stored = await connection.answer()
    assert stored is not None
    assert (stored.status, stored.revision) == (200, 1)
    await connection.send(b"garbage\r\n\r\n")
    refused = await connection.answer()
    assert refused is not None
    assert refused.status == 400
    assert await connection.answer() is None
    assert await server.proves_itself() == 2


@pytest.mark.parametrize("settings", [Settings(body_timeout=0.05)])
@pytest.mark.parametrize(
    "broken", [b"zz\r\n" + GOOD + b"\r\n0\r\n\r\n", b"5\r\n" + GOOD + b"\r\n0\r\n\r\n"]
)
async def test_a_broken_chunk_after_the_handler_has_begun_gets_a_4xx(
    server: Server, broken: bytes
) -> None:
    connection = await server.send(message("POST", "/set", None, CHUNKED | {"Expect": "100-continue"}))
    begun = await connection.answer()
    assert begun is not None
    assert begun.status == 100
    await connection.send(broken)
    answer = await connection.answer()
    assert answer is not None
    assert answer.status in {400, 408}
    await connection.close()
    assert await server.proves_itself() == 1


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize(
    "half",
    [
        pytest.param(b"PO", id="in the request line"),
        pytest.param(b"POST /set HTTP/1.1\r\nHost: local", id="in the header"),
        pytest.param(with_fields(b"Content-Length: 24"), id="before the body"),
        pytest.param(with_fields(b"Content-Length: 24", body=GOOD[:-1]), id="in the body"),
        pytest.param(message("POST", "/set", None, CHUNKED) + b"18\r\n" + GOOD[:5], id="in a chunk"),
        pytest.param(
            message("POST", "/set", None, CHUNKED) + b"18\r\n" + GOOD + b"\r\n",
            id="before the last chunk",
        ),
        pytest.param(message("POST", "/v1/transactions", b"{}")[:-1], id="in a body on v1"),
    ],
)
async def test_a_truncated_request_does_nothing_and_logs_no_fault(
    server: Server, caplog: pytest.LogCaptureFixture, half: bytes, ending: str
) -> None:
    connection = await server.connect()
    await connection.send(half)
    # The handler has the first half when the second is taken away from it.
    assert (await server.request("GET", "/healthz")).status == 200
    await (connection.close() if ending == "close" else connection.reset())
    assert await server.proves_itself() == 1
    assert (await server.request("GET", "/v1/status")).json()["transactions"]["open"] == 0
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []


async def test_a_body_in_single_bytes_is_accepted(server: Server) -> None:
    connection = await server.connect()
    for byte in message("POST", "/set", GOOD):
        await connection.send(bytes([byte]))
    answer = await connection.answer()
    assert answer is not None
    assert (answer.status, answer.revision) == (200, 1)


async def test_a_chunked_body_is_accepted(server: Server) -> None:
    chunks = (
        b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (GOOD[:5], GOOD[5:])) + b"0\r\n\r\n"
    )
    answer = await server.exchange(message("POST", "/set", None, CHUNKED) + chunks)
    assert answer is not None
    assert (answer.status, answer.revision) == (200, 1)


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    steps = [message("POST", "/set", GOOD), message("GET", "/get/a"), message("DELETE", "/delete/a")]
    connection = await server.send(b"".join(steps))
    answers = [await connection.answer() for _ in steps]
    assert [answer.json() for answer in answers if answer is not None] == [
        {"status": "ok"},
        {"key": "a", "value": 1},
        {"status": "deleted"},
    ]
