"""Bodies of /v1/batch."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvactor.api.operations import AnyOp
from kvactor.core.messages import Check, Presence


class BatchCheck(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A key, and the revision that it must have; null: it must not exist."""

    key: str
    revision: Annotated[int, Meta(ge=0)] | None

    def to_core(self) -> Check:
        """Return the core's check."""
        precondition = Presence.ABSENT if self.revision is None else (self.revision,)
        return Check(self.key.encode(), precondition)


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/batch."""

    operations: list[AnyOp]
    checks: list[BatchCheck] = []


class BatchResponse(msgspec.Struct):
    """The response to POST /v1/batch."""

    revision: Annotated[
        int | None,
        Meta(description="of this batch; null if it changed nothing, or within a transaction"),
    ]
    results: Annotated[list[Any], Meta(description="one for each operation, in order")]
