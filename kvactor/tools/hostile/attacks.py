"""The attacks: one function each. Its first sentence says what it does.

The rule: each ends soon after the target's end, and closes what it has opened.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from typing import Any, Final

import msgspec

from kvactor.tools.hostile.target import Target

MiB: Final = 1 << 20

Attack = Callable[[Target], None]

#: Operations of the largest batch.
BATCH: Final = 10_000


def _puts(number: int, first: int = 0, size: int = 1) -> bytes:
    value = "x" * size
    names = range(first, first + number)
    return _batch({"op": "put", "key": f"attack/{one:06}", "value": value} for one in names)


def _batch(operations: Iterable[Mapping[str, Any]], **others: Any) -> bytes:
    return msgspec.json.encode({"operations": list(operations), **others})


def _large(target: Target, number: int) -> None:
    """Store values of 1 MiB."""
    for one in range(number):
        target.ask("PUT", f"/v1/kv/large/{one:04}", b"x" * MiB)


@contextmanager
def _opened(target: Target) -> Iterator[dict[str, str]]:
    """An isolated transaction, as the header that names it."""
    state = target.ask("POST", "/v1/transactions").json()
    id_ = state.get("id", "")
    yield {"Kvactor-Transaction": id_}
    with suppress(OSError):
        target.ask("DELETE", f"/v1/transactions/{id_}")


def many_ranges(target: Target) -> None:
    """Read as many ranges as one transaction may, and let others' writes look them up."""
    with _opened(target) as headers:
        numbers = count()

        def step() -> None:
            starts = [f"r/{next(numbers):07}" for _ in range(800)]
            ranges = [{"op": "range", "start": one, "end": one + "!", "limit": 1} for one in starts]
            target.ask("POST", "/v1/batch", _batch(ranges), headers)

        target.repeat(step)


def delete_ranges(target: Target) -> None:
    """Delete one range of 1,000 keys 10,000 times in one batch."""
    target.ask("POST", "/v1/batch", _puts(1000))
    body = _batch([{"op": "delete_range", "prefix": "attack/"}] * BATCH)
    target.repeat(lambda: target.ask("POST", "/v1/batch", body))


def tombstones(target: Target) -> None:
    """Put and delete 40,000 keys, and scan for the first of them; the same in a transaction."""
    for first in range(0, 40_000, BATCH):
        target.ask("POST", "/v1/batch", _puts(BATCH, first))
        target.ask("DELETE", "/v1/kv?prefix=attack/")
    with _opened(target) as headers:
        for first in range(0, 40_000, BATCH):
            target.ask("POST", "/v1/batch", _puts(BATCH, first), headers)
            target.ask("DELETE", "/v1/kv?prefix=attack/", b"", headers)

        ranges = _batch([{"op": "range", "prefix": "attack/", "limit": 1}] * 100)

        def step() -> None:
            target.ask("GET", "/v1/kv?limit=1&prefix=attack/")
            target.ask("GET", "/v1/kv?limit=1&prefix=attack/", b"", headers)
            target.ask("POST", "/v1/batch", ranges, headers)

        target.repeat(step)


def large_values(target: Target) -> None:
    """Check, list and delete values of 1 MiB, which nobody has to read for that."""
    _large(target, 100)
    checks = _batch([], checks=[{"key": "large/0000", "revision": 1 << 60}] * 2000)
    deletions = _batch([{"op": "delete_range", "prefix": "none/"}] * 20)

    def step() -> None:
        target.ask("POST", "/v1/batch", checks)
        target.ask("GET", "/v1/kv?values=false&limit=1000&prefix=large/")
        target.ask("POST", "/v1/batch", deletions)

    target.repeat(step)


def streams(target: Target) -> None:
    """Follow the changes with 400 streams, each with a prefix, and write 10,000 keys at once."""
    with ExitStack() as stack:
        for number in range(400):
            connection = stack.enter_context(target.connect())
            prefix = "attack/0"[: 1 + number % 8]
            connection.send(
                "GET", f"/v1/changes?since=now&prefix={prefix}", b"", {"Accept": "text/event-stream"}
            )
            connection.socket.settimeout(0)

        def step() -> None:
            target.ask("POST", "/v1/batch", _puts(BATCH, size=100))

        target.repeat(step)


def hot_reads(target: Target) -> None:
    """Read many keys in 10 transactions, one of them the same in all, and write that one."""

    def step() -> None:
        with ExitStack() as stack:
            for _ in range(10):
                headers = stack.enter_context(_opened(target))
                for first in range(0, 100_000, BATCH // 2):
                    gets = [{"op": "get", "key": f"m/{first + one}"} for one in range(BATCH // 2)]
                    gets[0] = {"op": "get", "key": "hot"}
                    target.ask("POST", "/v1/batch", _batch(gets), headers)
                    if target.over:
                        break
            target.ask("PUT", "/v1/kv/hot", b"x")

    target.repeat(step)


def large_batches(target: Target) -> None:
    """Read 7 values of 1 MiB in each of 200 batches at once."""
    _large(target, 7)
    body = _batch({"op": "get", "key": f"large/{one:04}"} for one in range(7))
    target.repeat(lambda: target.at_once([lambda: target.ask("POST", "/v1/batch", body)] * 200, 100))


def unread_values(target: Target) -> None:
    """Ask for 1 MiB on 1,000 connections, and read none of it."""
    _large(target, 1)
    with ExitStack() as stack:
        for _ in range(1000):
            if target.over:
                break
            with suppress(OSError):
                connection = stack.enter_context(target.connect())
                connection.send("GET", "/v1/kv/large/0000")
        target.repeat(lambda: target.ask("GET", "/v1/kv/large/0000"))


def large_changes(target: Target) -> None:
    """Ask for a page of changes with a revision of 7 MB on 100 connections at once."""
    operations = [{"op": "put", "key": f"big/{one}", "value": "x" * (MiB - 8)} for one in range(7)]
    since = target.ask("POST", "/v1/batch", _batch(operations)).revision - 1
    path = f"/v1/changes?limit=1&since={max(0, since)}"
    target.repeat(lambda: target.at_once([lambda: target.ask("GET", path)] * 100, 100))


def endless_heads(target: Target) -> None:
    """Send a header line without an end on 100 connections, close them, and begin again."""

    def step() -> None:
        with ExitStack() as stack:
            for _ in range(100):
                connection = stack.enter_context(target.connect())
                connection.socket.settimeout(0.05)
                with suppress(OSError):
                    connection.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
                    for _ in range(64):
                        connection.socket.sendall(b"x" * (1 << 18))

    target.repeat(step)


def pipelined(target: Target) -> None:
    """Wait for changes on 200 connections, with PUTs of 60 kB pipelined behind that."""

    def step() -> None:
        with ExitStack() as stack:
            for _ in range(200):
                connection = stack.enter_context(target.connect())
                connection.socket.settimeout(0.05)
                with suppress(OSError):
                    connection.send("GET", "/v1/changes?since=now&prefix=none&wait=60")
                    for number in range(40):
                        connection.send("PUT", f"/v1/kv/p{number}", b"x" * 60_000)
                if target.over:
                    break

    target.repeat(step)


def full_transactions(target: Target) -> None:
    """Fill one transaction after the other with reads, and leave all of them open."""
    with ExitStack() as stack:
        numbers = count()

        def step() -> None:
            headers = stack.enter_context(_opened(target))
            for _ in range(40):
                gets = [{"op": "get", "key": f"{next(numbers):0200}"} for _ in range(2000)]
                response = target.ask("POST", "/v1/batch", _batch(gets), headers)
                if target.over or not response.ok:
                    break

        target.repeat(step)


def gone_followers(target: Target) -> None:
    """Wait for changes that never come on 1,000 connections, and close each at once."""

    def step() -> None:
        with target.connect() as connection:
            connection.send("GET", "/v1/changes?wait=300&prefix=none&since=now")

    target.repeat(step)
    target.ask("GET", "/v1/changes?wait=0.1&prefix=none&since=now")


def malformed(target: Target) -> None:
    """Send 200 kB of NUL bytes as a request, again and again."""

    def step() -> None:
        with target.connect() as connection:
            connection.socket.settimeout(1)
            with suppress(OSError):
                connection.socket.sendall(bytes(200_000))
                while connection.socket.recv(1 << 18):
                    pass

    target.repeat(step)


# -- honest clients that ask for much --


def batches_of_puts(target: Target) -> None:
    """Write 10,000 values of 100 bytes in one batch, again and again."""
    target.repeat(lambda: target.ask("POST", "/v1/batch", _puts(BATCH, size=100)))


def large_commits(target: Target) -> None:
    """Commit transactions of 90,000 keys."""

    def step() -> None:
        with _opened(target) as headers:
            for first in range(0, 90_000, BATCH):
                target.ask("POST", "/v1/batch", _puts(BATCH, first), headers)
            id_ = headers["Kvactor-Transaction"]
            target.ask("POST", f"/v1/transactions/{id_}/commit")

    target.repeat(step)


def large_scans(target: Target) -> None:
    """Scan 8 MiB in one page, again and again."""
    for first in range(0, 800, 100):
        target.ask("POST", "/v1/batch", _puts(100, first, size=10_000))
    target.repeat(lambda: target.ask("GET", "/v1/kv?prefix=attack/&limit=1000"))


#: The attacks, by name.
ATTACKS: Final[dict[str, Attack]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        many_ranges,
        delete_ranges,
        tombstones,
        large_values,
        streams,
        hot_reads,
        large_batches,
        unread_values,
        large_changes,
        endless_heads,
        pipelined,
        full_transactions,
        gone_followers,
        malformed,
    )
}

#: What honest clients ask for, by name: their effect on others is reported, without a goal.
HONEST: Final[dict[str, Attack]] = {
    one.__name__.replace("_", "-"): one for one in (batches_of_puts, large_commits, large_scans)
}
