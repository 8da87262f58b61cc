"""aiohttp's internals that kvactor relies on, each by its name.

pyproject.toml pins aiohttp below the next minor version. Before that pin moves, this has to pass: each
failure is a sentence that says what is gone and who needs it.
"""

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import http_exceptions, http_parser, http_writer, streams, web, web_protocol, web_request
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from kvactor.web.aiohttp_response import to_aiohttp
from kvactor.web.http import Response

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

#: Where it is, what it is called, and what it is needed for.
ATTRIBUTES: list[tuple[Any, str, str]] = [
    (web.RequestHandler, "_task_handler", "a stop cancels a connection that handles no request"),
    (web.RequestHandler, "_request_in_progress", "a stop knows which connections handle one"),
    (web.RequestHandler, "shutdown", "a stop waits for requests in progress alone"),
    (web.RequestHandler, "connection_made", "writing pauses as soon as anything is left"),
    (web.RequestHandler, "data_received", "a connection decides what is done with a chunk"),
    (web.RequestHandler, "eof_received", "a half-closed client gets its response"),
    (web.RequestHandler, "close", "a connection ends after the request in progress"),
    (web.RequestHandler, "force_close", "a connection ends without reading the rest of a body"),
    (web.RequestHandler, "_resume_reading_if_drained", "a connection knows when its turn has come"),
    (web.RequestHandler, "_make_error_handler", "a malformed request gets our shape of an error"),
    (web.RequestHandler, "handle_error", "a fault outside of the dispatcher gets our shape, too"),
    (web.RequestHandler, "_request_count", "a connection knows whether anything was asked"),
    (web.RequestHandler, "_messages", "what waits for its turn is bounded and forgotten"),
    (web.RequestHandler, "_waiter", "a connection that is idle is told from one that is not"),
    (web.RequestHandler, "_close", "a connection that is ending drops what arrives"),
    (web.RequestHandler, "_force_close", "a connection that is ending drops what arrives"),
    (web_protocol, "_ErrInfo", "a refusal waits for its turn like a request"),
    (streams, "EMPTY_PAYLOAD", "a request without a body is told from one with a body"),
    (streams.StreamReader, "set_exception", "a body that is refused fails the request that reads it"),
    (streams.StreamReader, "feed_eof", "a body that is refused is not waited for"),
    (streams.StreamReader, "exception", "a body that has broken off is told from a late one"),
    (http_parser.HttpRequestParser, "message_consumed", "late bodies do not fill the parser's queue"),
    (http_parser.HttpRequestParser, "set_upgraded", "an upgrade is ignored"),
    (http_parser.RawRequestMessage, "_replace", "an upgrade that has no known end ends the connection"),
    (BaseProtocol, "_parser", "nothing is parsed behind what was refused"),
    (BaseProtocol, "_buffer_paused", "reading pauses behind a request in progress"),
    (BaseProtocol, "_reading_paused", "the rest of a refused body is read and dropped"),
    (BaseProtocol, "_pause_reading_for_buffer", "reading pauses behind a request in progress"),
    (BaseProtocol, "_resume_reading_for_buffer", "reading goes on when its turn has come"),
    (web.RequestHandler, "connection_lost", "connections are counted"),
    (BaseProtocol, "transport", "slow clients are disconnected through it"),
    (BaseProtocol, "pause_writing", "a slow client is noticed"),
    (BaseProtocol, "resume_writing", "a client that has caught up is noticed"),
    (web.Server, "__call__", "each connection gets a protocol that is counted"),
    (web.Server, "pre_shutdown", "refused connections are closed, too"),
    (web.Server, "shutdown", "refused connections are closed, too"),
    (web.AppRunner, "_make_server", "the application is served over counted connections"),
    (streams.StreamReader, "is_eof", "a small body is read without waiting"),
    (streams.StreamReader, "read_nowait", "a small body is read without waiting"),
    (streams.StreamReader, "readany", "a body is read as it arrives"),
    (web.BaseRequest, "raw_path", "a target is taken apart as it was received"),
    (web.BaseRequest, "version", "other versions of HTTP are refused"),
    (web.BaseRequest, "transport", "a stream is aborted through it"),
    (web.Request, "match_info", "parameters of a path are found"),
    (http_parser, "HttpRequestParser", "the parser in C is told from the other one"),
    (http_parser, "HttpRequestParserPy", "the parser in C is told from the other one"),
    (http_exceptions, "HttpProcessingError", "malformed requests are told from mistakes"),
    (web, "RequestPayloadError", "a malformed body is told from a mistake"),
]

PARAMETERS: list[tuple[type, str, str]] = [
    (web.RequestHandler, "manager", "connections belong to our server"),
    (web.RequestHandler, "keepalive_timeout", "a silent connection is closed"),
    (web.RequestHandler, "lingering_time", "a refused client is not listened to for long"),
    (web.RequestHandler, "max_line_size", "a request line has a bound"),
    (web.RequestHandler, "max_field_size", "a header has a bound"),
    (web.RequestHandler, "auto_decompress", "a body is stored as it is"),
    (web.RequestHandler, "read_bufsize", "a body that nobody reads yet has a bound"),
    (web.RequestHandler, "access_log_class", "the access log shows nothing raw"),
    (web.Server, "request_factory", "requests are made as the application's are"),
    (web.Server, "handler_cancellation", "a handler goes on when its client is gone"),
    (web.AppRunner, "shutdown_timeout", "a stop does not wait for ever"),
]

#: Instance attributes, by the source that sets them.
SET: list[tuple[Any, str, str]] = [
    (web.Server, "self._loop =", "connections have the server's loop and clock"),
    (web.Server, "self.request_handler =", "our server calls the application"),
    (web.Server, "self.request_factory =", "our server makes the application's requests"),
    (streams.StreamReader, "self.total_bytes =", "a body counts from its first byte"),
    (web.BaseRequest, "self._message =", "the head of a request is read without calls"),
    (web.BaseRequest, "self._protocol =", "a request is counted for the client of its connection"),
]

#: Behaviour, by the source that shows it.
BEHAVIOUR: list[tuple[Any, str, str]] = [
    (
        web_protocol.RequestHandler.data_received,
        "if self._force_close or self._close:\n            return",
        "A connection drops what it receives from a stop on: our data_received does the same.",
    ),
    (
        web_protocol.RequestHandler.start,
        "if isinstance(message, _ErrInfo):",
        "A refusal in the queue is answered in its turn.",
    ),
    (
        web_protocol.RequestHandler.start,
        "self._resume_reading_if_drained()",
        "A paused connection is told when it turns to the next request.",
    ),
    (
        web_protocol.RequestHandler.start,
        "if not self._force_close and lingering_time:",
        "A connection that is closed by force does not wait for the rest of a body.",
    ),
    (
        web.Application._handle,
        "if request.headers.get(hdrs.EXPECT):\n            resp = await match_info.expect_handler(",
        "Requests with Expect, and no others, come to our handler of expectations.",
    ),
    (
        web_protocol.RequestHandler._handle_request,
        "resp = await request_handler(request)",
        "A request is handled in a task of its own, and finish_response is called behind it.",
    ),
    (
        web_protocol.RequestHandler.finish_response,
        "except ConnectionError:",
        "A client that is gone is no error: the dispatcher leaves it to aiohttp to notice it again.",
    ),
    (
        web_request.BaseRequest._finish,
        "if self._post is None",
        "Nothing that follows a handler changes a response that the dispatcher has sent.",
    ),
    (
        http_writer.StreamWriter.drain,
        "await protocol._drain_helper()",
        "write_eof returns when writing is not paused: until then the dispatcher holds a lease.",
    ),
]


@pytest.mark.parametrize(("place", "name", "use"), ATTRIBUTES)
def test_an_attribute_that_is_relied_on_is_there(place: Any, name: str, use: str) -> None:
    there = hasattr(place, name)
    assert there, (
        f"aiohttp {aiohttp.__version__} has no {place.__name__}.{name} any more: "
        f"it is needed so that {use}."
    )


@pytest.mark.parametrize(("kind", "name", "use"), PARAMETERS)
def test_a_parameter_that_is_relied_on_is_taken(kind: type, name: str, use: str) -> None:
    there = any(name in inspect.signature(one).parameters for one in kind.__mro__[:-1])
    assert there, f"{kind.__qualname__} takes no {name} any more: it is needed so that {use}."


@pytest.mark.parametrize(("place", "text", "use"), [*SET, *BEHAVIOUR])
def test_a_line_of_aiohttps_source_that_is_relied_on_is_there(place: Any, text: str, use: str) -> None:
    there = text in inspect.getsource(place)
    assert there, f"{place.__qualname__} has no {text!r} any more. {use}"


async def test_a_response_that_is_sent_already_is_not_sent_again() -> None:
    sent: list[bytes] = []
    request = make_mocked_request("GET", "/")
    writer: Any = request._payload_writer

    async def write_eof(chunk: bytes = b"") -> None:
        sent.append(chunk)

    writer.write_eof = write_eof
    writer.output_size = 4
    response = to_aiohttp(Response(1, b"body"), 0)
    for _ in range(2):  # by the dispatcher, and by aiohttp, which it is returned to
        await response.prepare(request)
        await response.write_eof()
    assert sent == [b"body"], "aiohttp sends a response twice that a handler has sent already."
    assert response.keep_alive is not None, "aiohttp does not know if the connection is kept."


def test_a_response_has_all_that_aiohttps_own_has() -> None:
    own = vars(web.Response(body=b"body", status=201, headers={"A": "b"}))
    made = vars(to_aiohttp(Response(1, b"body", 201), 0))
    of_compression = {"_compressed_body", "_zlib_executor", "_zlib_executor_size"}
    assert made.keys() == own.keys() - of_compression, "aiohttp's responses have other attributes now."
    same = ("_state", "_status", "_reason", "_body")
    assert [made[name] for name in same] == [own[name] for name in same]


def test_aiohttp_is_pinned_below_the_next_minor_version() -> None:
    (pin,) = [
        one
        for one in tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
        if one.startswith("aiohttp")
    ]
    found = re.fullmatch(r"aiohttp>=(\d+)\.(\d+)\.\d+,<(\d+)\.(\d+)", pin)
    assert found, pin
    major, minor, next_major, next_minor = map(int, found.groups())
    assert (next_major, next_minor) == (major, minor + 1)
    assert aiohttp.__version__.startswith(f"{major}.{minor}.")
