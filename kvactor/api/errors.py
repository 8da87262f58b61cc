"""The two shapes of an error."""

from typing import Annotated

import msgspec
from msgspec import Meta


class SimpleError(msgspec.Struct):
    """An error on the simple routes."""

    error: Annotated[str, Meta(description="a whole sentence")]


class Problem(msgspec.Struct):
    """An error on /v1, as in RFC 9457. Some codes come with further fields."""

    type: str
    title: str
    status: int
    code: Annotated[str, Meta(description="for programs; does not change")]
    detail: Annotated[str, Meta(description="a whole sentence")]
