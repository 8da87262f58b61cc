"""The client's side of HTTP, as bytes and values; and the same on sockets."""

import socket
from collections.abc import Iterator
from threading import Thread

import pytest

from kvactor.tools.connections import Connection, EventStream
from kvactor.tools.http import ClientProtocol, Closed, Response, encode_request

OK = b'HTTP/1.1 200 OK\r\nKvactor-Revision: 7\r\nETag: "5"\r\nContent-Length: 2\r\n\r\nhi'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\nyou\r\n0\r\n\r\n"
CLOSING = b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def expecting(*methods: str) -> ClientProtocol:
    protocol = ClientProtocol()
    for method in methods:
        protocol.expect(method)
    return protocol


def responses(data: bytes, *methods: str, size: int = 1 << 16) -> list[Response]:
    """Receive bytes in pieces of a size, and return the responses in them."""
    protocol = expecting(*methods)
    for at in range(0, len(data), size):
        protocol.receive(data[at : at + size])
    return [response for _ in methods if (response := protocol.response()) is not None]


def test_a_request_is_encoded_with_its_headers_and_its_length() -> None:
    assert encode_request("GET", "/a") == b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert encode_request("PUT", "/a", b"hi", {"If-Match": "*"}, "h:1") == (
        b"PUT /a HTTP/1.1\r\nHost: h:1\r\nIf-Match: *\r\nContent-Length: 2\r\n\r\nhi"
    )
    assert b"\r\nContent-Length: 0\r\n" in encode_request("POST", "/begin")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 16])
@pytest.mark.parametrize(
    ("data", "method", "status", "body"),
    [
        (OK, "GET", 200, b"hi"),
        (CHUNKED, "GET", 200, b"hiyou"),
        (HEAD, "HEAD", 200, b""),
        (CONTINUE + OK, "PUT", 200, b"hi"),
        (CONTINUE + HEAD, "HEAD", 200, b""),
        (b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n', "GET", 304, b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "DELETE", 204, b""),
    ],
)
def test_a_response_in_pieces_of_any_size_is_the_same(
    data: bytes, method: str, status: int, body: bytes, size: int
) -> None:
    [response] = responses(data, method, size=size)
    assert (response.status, response.body) == (status, body)


def test_a_response_names_its_revision_its_etag_and_its_code() -> None:
    [response] = responses(OK, "GET")
    assert (response.revision, response.etag, response.ok, response.code) == (7, 5, True, "200")
    problem = b'HTTP/1.1 409 C\r\nContent-Length: 16\r\n\r\n{"code":"a_code"'
    assert expecting("GET").response() is None
    [conflict] = responses(problem.replace(b"16", b"17") + b"}", "GET")
    assert (conflict.revision, conflict.etag, conflict.ok, conflict.code) == (0, 0, False, "a_code")


def test_pipelined_responses_come_in_order() -> None:
    assert [one.status for one in responses(OK + CLOSING, "GET", "PUT")] == [200, 503]


def test_head_is_not_pipelined() -> None:
    with pytest.raises(RuntimeError):
        expecting("HEAD", "GET")
    with pytest.raises(RuntimeError):
        expecting("GET", "HEAD")


def test_a_connection_is_used_again_after_a_head() -> None:
    protocol = expecting("HEAD")
    protocol.receive(HEAD)
    assert protocol.response() is not None
    protocol.expect()
    protocol.receive(OK)
    response = protocol.response()
    assert response is not None
    assert response.body == b"hi"


@pytest.mark.parametrize(
    "data", [b"what?", b"HTTP/1.1 x\r\n\r\n", OK + OK, OK + OK[:9], HEAD + b"more"]
)
def test_bytes_that_are_no_response_or_unasked_for_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="come"):
        expecting("HEAD" if data.startswith(HEAD) else "GET").receive(data)


def test_bytes_before_any_request_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing was asked"):
        ClientProtocol().receive(OK)


@pytest.mark.parametrize("data", [b"", OK[:-1], CHUNKED[:-1], HEAD])
def test_a_connection_that_ends_within_a_response_is_closed(data: bytes) -> None:
    protocol = expecting("GET")
    if data:
        protocol.receive(data)
    protocol.receive_end()
    with pytest.raises(Closed):
        protocol.response()


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    protocol = expecting("GET")
    protocol.receive(b"HTTP/1.0 200 OK\r\n\r\nhi")
    assert protocol.response() is None
    protocol.receive_end()
    response = protocol.response()
    assert response is not None
    assert response.body == b"hi"


def test_a_request_after_a_response_that_closes_is_refused() -> None:
    protocol = expecting("GET")
    protocol.receive(CLOSING)
    assert protocol.response() is not None
    assert not protocol.open
    with pytest.raises(Closed):
        protocol.request("GET", "/a")


# -- on sockets --


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def serve_once(listener: socket.socket, data: bytes) -> Thread:
    """Answer one request with bytes, and close the connection then."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += connection.recv(1000)
            connection.sendall(data)
            # Not closed before the client has read it all.
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    thread = Thread(target=serve)
    thread.start()
    return thread


def test_a_request_whose_response_is_cut_off_is_sent_once_and_closed(listener: socket.socket) -> None:
    thread = serve_once(listener, OK[:-1])
    with Connection(*listener.getsockname()) as connection:
        with pytest.raises(Closed):
            connection.request("GET", "/a")
        with pytest.raises(Closed):
            connection.request("GET", "/a")
    thread.join()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_an_event_stream_yields_whole_events_until_it_ends(listener: socket.socket) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    thread = serve_once(listener, head + b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: c\n")
    with EventStream(*listener.getsockname(), target="/v1/changes", last_id=0) as stream:
        assert stream.status == 200
        events = stream.events()
        assert [(event.id, event.data) for event in (next(events), next(events))] == [
            ("1", "a"),
            ("2", "b"),
        ]
        with pytest.raises(Closed):
            next(events)
    thread.join()
