"""What comes in: paths, headers and bodies, taken apart strictly and once."""

import asyncio
import re
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge

from kvactor.errors import BodyTimeout, BodyTooLarge, InvalidKey, InvalidRequest
from kvactor.messages import Scope, Within
from kvactor.web.answers import TRANSACTION

T = TypeVar("T")

_VERSIONS = (HttpVersion10, HttpVersion11)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


def check_form(request: web.Request) -> None:
    """Raise `InvalidRequest` for another HTTP than 1.0 and 1.1, and for a target that is no path."""
    if request.version not in _VERSIONS or request.raw_path[:1] != "/":
        raise InvalidRequest("A request is HTTP/1.1 or HTTP/1.0, and its target begins with /.")


def key_in_path(request: web.Request, prefix: str) -> bytes:
    """Return the rest of the request's path behind `prefix`, decoded once.

    Raises `InvalidKey` unless it is UTF-8.
    """
    path = request.raw_path
    if not path.startswith(prefix):
        raise InvalidRequest(f"The path has to begin with {prefix} as it stands, without escapes.")
    path = path[len(prefix) :].partition("?")[0]
    if "%" in path:
        if _BAD_ESCAPE.search(path):
            raise InvalidKey("The key in the path has a % that two hexadecimal digits do not follow.")
        key = unquote_to_bytes(path.encode("utf-8", "surrogateescape"))
    else:
        key = path.encode("utf-8", "surrogateescape")
    if not key.isascii():
        try:
            key.decode()
        except UnicodeDecodeError:
            raise InvalidKey("The key in the path is not UTF-8.") from None
    return key


def within(request: web.Request, otherwise: Scope) -> Within:
    """Return in which transaction a request speaks: the isolated one that its header names, or else
    `otherwise`.
    """
    return request.headers.get(TRANSACTION, otherwise)


async def body_of(request: web.Request, timeout: float) -> bytes:
    """Return the request's body.

    Raises `BodyTooLarge`, `BodyTimeout`, and `InvalidRequest` if it is cut off or malformed.
    """
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(timeout):
            return await request.read()
    except TimeoutError:
        raise BodyTimeout(f"The body has not arrived within {timeout:g} s.") from None
    except HTTPRequestEntityTooLarge as error:
        raise BodyTooLarge(f"The body is larger than max_body_size allows. {error.text}") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise InvalidRequest(f"The body cannot be read: {error}") from None


def parse(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return what a JSON body says.

    Raises `InvalidRequest` unless it is UTF-8, JSON, and of the decoder's type.
    """
    try:
        # The decoder does not look into strings that it skips or passes on.
        return decoder.decode(body if body.isascii() else body.decode())
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body is not what is expected here: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
