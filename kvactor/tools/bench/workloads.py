"""What the benchmark asks of a server: the keys, the value, the requests, the table of workloads.

Everything that sends a request takes it from here, as a format that Python's `%` and Lua's
`string.format` fill with numbers alike: so both generators and the check for sameness speak about
the same bytes.
"""

from collections.abc import Generator
from typing import Final

import msgspec

KEY: Final = "key%09d"
"""All keys have one length."""

VALUE: Final = ("0123456789" * 10)[:98]
"""With its quotes, 100 bytes of JSON."""

BATCH: Final = 100
SCAN: Final = 1000
STAMP_SIZE: Final = 20
TRANSACTION_HEADER: Final = "Kvactor-Transaction"


class Request(msgspec.Struct, frozen=True):
    """A request, with places for numbers: those of its keys."""

    method: str
    path: str
    body: str = ""

    @property
    def numbers(self) -> int:
        """How many numbers it takes."""
        return (self.path + self.body).count("%")

    def text(self, host: str, transaction: str = "") -> str:
        """Return it as HTTP/1.1, inside `transaction` if one is named; the numbers are to come."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}"]
        if transaction:
            lines.append(f"{TRANSACTION_HEADER}: {transaction}")
        if self.body:
            lines.append("Content-Type: application/json")
        if self.method != "GET":
            length = len(self.body % ((0,) * self.body.count("%")))
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", self.body])

    def raw(self, host: str, *numbers: int, transaction: str = "") -> bytes:
        """Return its bytes."""
        return (self.text(host, transaction) % numbers).encode()


def _batch(operation: str) -> Request:
    operations = ",".join([operation] * BATCH)
    return Request("POST", "/v1/batch", f'{{"operations":[{operations}]}}')


GET: Final = Request("GET", f"/get/{KEY}")
SET: Final = Request("POST", "/set", f'{{"key":"{KEY}","value":"{VALUE}"}}')
RAW_GET: Final = Request("GET", f"/v1/kv/{KEY}")
RAW_PUT: Final = Request("PUT", f"/v1/kv/{KEY}", f'"{VALUE}"')
BATCH_PUT: Final = _batch(f'{{"op":"put","key":"{KEY}","value":"{VALUE}"}}')
BATCH_GET: Final = _batch(f'{{"op":"get","key":"{KEY}"}}')
SCAN_FIRST: Final = Request("GET", f"/v1/kv?limit={SCAN}")
CREATE: Final = Request("POST", "/v1/transactions")
STAMPED_PUT: Final = Request("PUT", f"/v1/kv/{KEY}", f'"%0{STAMP_SIZE}d{VALUE[STAMP_SIZE:]}"')
"""Its second number is the time, in nanoseconds."""
FOLLOW: Final = "GET /v1/changes?since=now HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n"


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of load: requests drawn at random, each with its share in percent.

    Without them, a client's next request depends on what went before, which wrk cannot do.
    """

    name: str
    about: str
    requests: tuple[tuple[int, Request], ...] = ()
    counts: str = "requests"
    each: int = 1
    """How many of what it counts are in a request."""
    clients: tuple[int, ...] = (1, 32, 64, 256)
    """How many there are, unless the command line says so."""
    subscribers: int = 0
    """Clients that follow the changes: then what they are told is counted, and no other answer."""
    bare: bool = True
    """Is there anything to compare with?"""


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload(name="get", about="GET /get/{key}", requests=((100, GET),)),
        Workload(name="set", about="POST /set, durable", requests=((100, SET),)),
        Workload(name="mix", about="80 % GET, 20 % SET", requests=((80, GET), (20, SET))),
        Workload(name="transaction", about="create, get, set, commit: four requests"),
        Workload(name="raw-get", about="GET /v1/kv/{key}", requests=((100, RAW_GET),), clients=(64,)),
        Workload(
            name="raw-put", about="PUT /v1/kv/{key}, durable", requests=((100, RAW_PUT),), clients=(64,)
        ),
        Workload(
            name="batch-put",
            about=f"POST /v1/batch, {BATCH} puts, durable",
            requests=((100, BATCH_PUT),),
            counts="operations",
            each=BATCH,
            clients=(32,),
        ),
        Workload(
            name="batch-get",
            about=f"POST /v1/batch, {BATCH} gets",
            requests=((100, BATCH_GET),),
            counts="operations",
            each=BATCH,
            clients=(32,),
        ),
        Workload(
            name="scan",
            about=f"GET /v1/kv, {SCAN:,} items with their values",
            requests=((100, SCAN_FIRST),),
            counts="items",
            each=SCAN,
            clients=(32,),
        ),
        Workload(
            name="feed",
            about="GET /v1/changes as server-sent events, 100 subscribers; the clients are writers, "
            "and the latency is from a write's sending to each subscriber",
            counts="events",
            clients=(1, 32),
            subscribers=100,
            bare=False,
        ),
    )
}

FILL: Final = Workload(name="fill", about="each key set once, to have something to read")


class Load(msgspec.Struct, frozen=True):
    """A workload from so many clients, for so long, over so many keys."""

    workload: Workload
    clients: int
    seconds: int
    keys: int


class Target(msgspec.Struct, frozen=True):
    """What is wanted at least with `clients` and more: a ratio, kvactor to bare, of what is counted
    per second; or, if `absolute`, kvactor's own figure, which says as much about the machine.
    """

    workload: str
    clients: int
    least: float
    absolute: bool = False


TARGETS: Final = (
    Target("get", 1, 0.85),
    Target("set", 64, 0.60),
    Target("batch-put", 1, 100_000, absolute=True),
)

Script = Generator[bytes, bytes | None, None]
"""A client's behaviour: it yields a request and is sent the answer's body, or None for an error."""


def transaction(host: str, number: int) -> Script:
    """Create a transaction, read and write key `number` in it, and commit."""
    created = yield CREATE.raw(host)
    if created is None:
        return
    name = msgspec.json.decode(created, type=_Created).id
    yield GET.raw(host, number, transaction=name)
    yield SET.raw(host, number, transaction=name)
    yield Request("POST", f"/v1/transactions/{name}/commit").raw(host)


class _Created(msgspec.Struct):
    id: str
