"""What the benchmark asks of a server: the keys, the value, the requests, the table of workloads.

Everything that sends a request takes it from here (wrk.lua is handed the same key format and
value), so both generators and the check for sameness speak about the same bytes.
"""

from collections.abc import Generator
from typing import Final

import msgspec

KEY_FORMAT: Final = "key%09d"
"""Understood alike by Python's `%` and Lua's `string.format`; all keys have one length."""

VALUE: Final = ("0123456789" * 10)[:98]
"""With its quotes, 100 bytes of JSON."""

TRANSACTION_HEADER: Final = "Kvactor-Transaction"


class Workload(msgspec.Struct, frozen=True):
    """One kind of load. `reads` is the share of GETs in percent, the rest are SETs."""

    name: str
    about: str
    reads: int = 0
    needs_state: bool = False
    """A client's next request depends on an answer, which wrk cannot do."""


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload("get", "GET /get/{key}", reads=100),
        Workload("set", "POST /set, durable"),
        Workload("mix", "80 % GET, 20 % SET", reads=80),
        Workload("transaction", "create, get, set, commit: four requests", needs_state=True),
    )
}

FILL: Final = Workload("fill", "each key set once, to have something to read", needs_state=True)


class Load(msgspec.Struct, frozen=True):
    """A workload from so many clients, for so long, over so many keys."""

    workload: Workload
    clients: int
    seconds: int
    keys: int


class Target(msgspec.Struct, frozen=True):
    """The least ratio of requests/s, kvactor to bare, that is wanted with `clients` and more."""

    workload: str
    clients: int
    ratio: float


TARGETS: Final = (Target("get", 1, 0.85), Target("set", 64, 0.60))


def key_name(number: int) -> str:
    """Return the name of key `number`, counted from 0."""
    return KEY_FORMAT % number


Script = Generator[bytes, bytes | None, None]
"""A client's behaviour: it yields a request and is sent the answer's body, or None for an error."""


class Requests:
    """Builds raw HTTP/1.1 requests for one host."""

    def __init__(self, host: str) -> None:
        self._end = f" HTTP/1.1\r\nHost: {host}\r\n"

    def get(self, number: int, transaction: str = "") -> bytes:
        """Read key `number`, inside `transaction` if one is named."""
        return f"GET /get/{key_name(number)}{self._end}{_header(transaction)}\r\n".encode()

    def set(self, number: int, transaction: str = "") -> bytes:
        """Write key `number`, inside `transaction` if one is named."""
        body = f'{{"key":"{key_name(number)}","value":"{VALUE}"}}'
        return self.post("/set", body, transaction)

    def post(self, path: str, body: str = "", transaction: str = "") -> bytes:
        """Post `body`, which must be ASCII."""
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"{kind}Content-Length: {len(body)}\r\n{_header(transaction)}"
        return f"POST {path}{self._end}{head}\r\n{body}".encode()

    def transaction(self, number: int) -> Script:
        """Create a transaction, read and write key `number` in it, and commit."""
        created = yield self.post("/v1/transactions")
        if created is None:
            return
        name = msgspec.json.decode(created, type=_Created).id
        yield self.get(number, name)
        yield self.set(number, name)
        yield self.post(f"/v1/transactions/{name}/commit")


class _Created(msgspec.Struct):
    id: str


def _header(transaction: str) -> str:
    return f"{TRANSACTION_HEADER}: {transaction}\r\n" if transaction else ""
