"""Bodies of /healthz, /readyz and /v1/status."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Health(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """The owner answers."""

    status: Literal["ready"]


class Mailbox(msgspec.Struct):
    """The owner's mailbox."""

    waiting: Annotated[int, Meta(description="requests in the mailbox, or waiting for the disk")]
    held: Annotated[int, Meta(description="responses that wait for the disk")]


class Shared(msgspec.Struct):
    """The shared transaction."""

    depth: Annotated[int, Meta(description="0: it is not open")]
    age: Annotated[float, Meta(description="seconds")]


class Transactions(msgspec.Struct):
    """Open transactions."""

    open: Annotated[int, Meta(description="isolated ones")]
    shared: Shared


class Memtable(msgspec.Struct):
    """Changes that are not in the tree yet."""

    keys: int
    bytes: int


class StorageReport(msgspec.Struct):
    """The state of the storage."""

    staged: Annotated[int, Meta(description="revisions on their way to the disk")]
    memtable: Memtable
    folded: Annotated[int, Meta(description="the newest revision in the tree")]
    free: Annotated[int, Meta(description="bytes of disk")]


class StatusReport(msgspec.Struct):
    """The response to GET /v1/status."""

    version: str
    revision: int
    keys: Annotated[int, Meta(description="expired ones count until they are swept")]
    mailbox: Mailbox
    transactions: Transactions
    storage: StorageReport
