"""A scan with a cursor while others write and delete: no key that was there all along is missed or
doubled.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

import pytest

from kvactor.tools.bench.preload import key, preload
from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.servers import PATIENCE, Server
from tests.sizes import size

KEYS = size("scanned_keys")
WRITERS = 4


class Meddler(Thread):
    """Writes and deletes keys between the steady ones, and gives steady ones new values."""

    def __init__(self, name: str, server: Server) -> None:
        super().__init__(name=name)
        self._server = server
        self._random = Random(name)
        self.batches = 0
        self.statuses: set[int] = set()
        self.enough = Event()

    def run(self) -> None:
        with Client(self._server) as client:
            while not self.enough.is_set():
                operations = [self._operation() for _ in range(50)]
                done = client.ask("POST", "/v1/batch", {"operations": operations})
                self.statuses.add(done.status)
                self.batches += 1

    def _operation(self) -> dict[str, Any]:
        steady = key(self._random.randrange(KEYS))
        match self._random.randrange(4):
            case 0:
                return {"op": "put", "key": steady, "value": self.name}
            case 1:
                return {"op": "delete_range", "start": f"{steady}~", "end": f"{steady}~~"}
            case _:
                return {"op": "put", "key": f"{steady}~{self._random.randrange(3)}", "value": 1}


def scan(client: Client, reverse: bool) -> Iterator[str]:
    """Yield all keys, page by page."""
    target: str | None = f"/v1/kv?limit=1000&values=false&reverse={str(reverse).lower()}"
    for _ in range(10 * KEYS // 1000):
        if target is None:
            return
        page = client.ask("GET", target)
        assert page.status == 200
        yield from (item["key"] for item in page.body["items"])
        link = client.headers.get("Link")
        target = link and link[1:].partition(">")[0]
    raise AssertionError("the scan does not end")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_under_load_misses_and_doubles_no_key_that_was_there_all_along(
    start: Start, data_dir: Path, reverse: bool, figure: Callable[[str], None]
) -> None:
    preload(data_dir, KEYS)
    server = start("--memtable-size", "300000")
    meddlers = [Meddler(f"meddler{number}", server) for number in range(WRITERS)]
    for one in meddlers:
        one.start()
    began = time.monotonic()
    try:
        with Client(server) as client:
            found = list(scan(client, reverse))
    finally:
        for one in meddlers:
            one.enough.set()
        for one in meddlers:
            one.join(PATIENCE)
    took = time.monotonic() - began
    assert {status for one in meddlers for status in one.statuses} == {200}
    if reverse:
        found.reverse()
    assert found == sorted(set(found)), "a key came twice, or out of order"
    assert [one for one in found if "~" not in one] == [key(number) for number in range(KEYS)]
    assert len(found) > KEYS, "nothing else was written, so nothing was tested"
    batches = sum(one.batches for one in meddlers)
    figure(
        f"scan of {KEYS} keys, {'last' if reverse else 'first'} key first, {batches} batches of 50 "
        "writes meanwhile: "
        f"none missed, none doubled, {len(found) - KEYS} others seen, {took:.1f} s"
    )
