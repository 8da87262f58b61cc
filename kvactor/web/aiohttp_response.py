"""Responses as aiohttp sends them.

The rule: a response is made and sent without copies of its headers or its body.
"""

from aiohttp import hdrs, web
from multidict import CIMultiDict

from kvactor.web.http import CONTENT_TYPE, NO_HEADERS, REVISION, TIME, Response
from kvactor.web.limits import CHUNK_SIZE


class _Response(web.Response):
    """A response whose headers aiohttp does not copy, and whose parts it does not check again."""

    def __init__(self, status: int, body: bytes, headers: CIMultiDict[str]) -> None:
        web.StreamResponse.__init__(self, status=status, _real_headers=headers)
        self._body = body

    def take_body(self) -> bytes:
        """Return the body, which the response does not send itself then."""
        body, self._body = self._body, None
        return body if isinstance(body, bytes) else b""


def to_aiohttp(response: Response, time: int) -> web.Response:
    """Return a response as aiohttp sends it, judged at `time`; 0: the owner was not asked."""
    headers: CIMultiDict[str] = CIMultiDict()
    headers[CONTENT_TYPE] = response.content_type
    headers[REVISION] = str(response.revision)
    if time:
        headers[TIME] = str(time)
    if response.headers is not NO_HEADERS:
        headers.update(response.headers)
    return _Response(response.status, response.body, headers)


async def send(request: web.BaseRequest, response: web.Response) -> None:
    """Send a response, and return when the client has it. aiohttp does not send it again.

    A large body is written in slices: aiohttp would copy it whole behind the head.
    """
    try:
        await response.prepare(request)
        body = response.body
        large = isinstance(body, bytes) and len(body) > CHUNK_SIZE
        if large and isinstance(response, _Response) and request.method != hdrs.METH_HEAD:
            view = memoryview(response.take_body())
            for start in range(0, len(view), CHUNK_SIZE):
                await response.write(view[start : start + CHUNK_SIZE])
        await response.write_eof()
    except ConnectionError as error:
        # aiohttp meets it again, and ends the connection. It leads to the frames of who waited, and
        # they lead to it: a cycle that holds the response.
        error.__traceback__ = None
