"""What goes out: every answer says at which revision of the store it was true."""

from collections.abc import Mapping

from aiohttp import web
from multidict import istr

REVISION = istr("Kvactor-Revision")
TRANSACTION = istr("Kvactor-Transaction")
_CONTENT_TYPE = istr("Content-Type")


def answer(
    revision: int,
    body: bytes,
    status: int = 200,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return an answer that was true at `revision`."""
    all_headers: dict[str, str] = {_CONTENT_TYPE: content_type, REVISION: str(revision)}
    if headers:
        all_headers.update(headers)
    return web.Response(body=body, status=status, headers=all_headers)
