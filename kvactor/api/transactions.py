"""Bodies of /v1/transactions."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kvactor.settings import MAX_SECONDS


class OpenBody(msgspec.Struct, forbid_unknown_fields=True):
    """The optional body of POST /v1/transactions."""

    idle_timeout: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=MAX_SECONDS,
                description="seconds of idleness after which the server rolls the transaction back",
            ),
        ]
        | None
    ) = None
    retry_of: (
        Annotated[
            str,
            Meta(
                max_length=100,
                description="id of the conflicted transaction that this one does again; after three "
                "conflicts in a row it has priority",
            ),
        ]
        | None
    ) = None


class TransactionState(msgspec.Struct):
    """A transaction after the request."""

    id: str
    depth: Annotated[int, Meta(ge=0, description="levels of nesting; 0: it has ended")]
    expires_at: Annotated[
        str | UnsetType, Meta(description="an idle transaction is rolled back then: RFC 3339, UTC")
    ] = UNSET
