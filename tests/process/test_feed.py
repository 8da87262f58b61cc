"""Following the changes: whoever resumes from what it has seen last gets each revision once, in
order, and whole, whatever dies; and who does not read harms nobody.
`KVACTOR_TEST_RESUMES=50` and `KVACTOR_TEST_UNREAD_SECONDS=60` are what the promises are about.
"""

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Thread

from tests.process.clients import CLOSED, Client, Event, Stream
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.servers import PATIENCE
from tests.process.writers import Load
from tests.sizes import size

RESUMES = size("resumes")
KILLS = RESUMES // 10
UNREAD_SECONDS = size("unread_seconds")

#: Bytes that a reader who does not read, and the load, may cost the server.
MEMORY = 50_000_000


class Copy:
    """A store rebuilt from the feed. Asserts that each revision comes once, in order, and whole."""

    def __init__(self) -> None:
        self.revision = 0
        self.values: dict[str, tuple[str, int]] = {}
        self._writes: set[str] = set()

    def take(self, event: Event) -> None:
        """Apply the next event."""
        assert event.id == event.data["revision"] == self.revision + 1
        self.revision = event.id
        changes = event.data["changes"]
        assert changes
        assert len({change["key"] for change in changes}) == len(changes)
        for change in changes:
            if change.get("deleted"):
                del self.values[change["key"]]
            else:
                assert change["revision"] == event.id
                self.values[change["key"]] = (change["value"], event.id)
        # A writer's values name it, and count its writes.
        writes = {change["value"].partition(" .")[0] for change in changes if "value" in change}
        assert len(writes) <= 1, "a revision holds two writes"
        assert not writes & self._writes, "a write is in two revisions"
        self._writes |= writes


def test_a_feed_resumed_again_and_again_across_kills_rebuilds_the_store(
    start: Start, data_dir: Path, figure: Callable[[str], None]
) -> None:
    random = Random("feed")
    copy = Copy()
    began = time.monotonic()
    for kill in range(KILLS):
        server = start("--memtable-size", "100000")
        with (
            Load(server, f"keys{kill}", writers=10),
            Load(server, f"transactions{kill}", writers=10, transactional=True),
        ):
            for resume in range(RESUMES // KILLS):
                with Stream(server, copy.revision) as stream:
                    assert stream.status == 200
                    # Not by events: it ends in the middle of one, too.
                    for _ in range(random.randrange(1, 50)):
                        for event in stream.some(random.randrange(1, 5000)):
                            copy.take(event)
                    if resume == RESUMES // KILLS - 1:
                        server.kill()
                        try:
                            for event in stream.changes():
                                copy.take(event)
                        except CLOSED:
                            pass
    server = start()
    with Stream(server, copy.revision) as stream:
        events = stream.changes()
        while copy.revision < server.revision:
            copy.take(next(events))
    server.kill()
    after = contents(data_dir)
    assert copy.revision == after.revision
    assert copy.values == {
        key: (json.loads(record.value), record.revision) for key, record in after.records.items()
    }
    figure(
        f"feed: {RESUMES} resumes, {KILLS} kills: {copy.revision} revisions rebuilt "
        f"{len(copy.values)} keys exactly, {time.monotonic() - began:.1f} s"
    )


def test_a_reader_that_does_not_read_is_cut_off_and_resumes_and_harms_nobody(
    start: Start, figure: Callable[[str], None]
) -> None:
    server = start("--write-timeout", str(UNREAD_SECONDS))
    healthy = Copy()
    slow_clients_disconnected = "slow clients disconnected"
    latencies: list[float] = []

    def follow() -> None:
        with Stream(server) as stream:
            for event in stream.changes():
                healthy.take(event)
                if event.data["changes"][0]["key"] == "end":
                    return

    follower = Thread(target=follow)
    follower.start()
    with Client(server) as client, socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.settimeout(PATIENCE)
        unread.connect((server.host, server.port))
        unread.sendall(
            b"GET /v1/changes HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        before, most, number = server.memory(), 0, 0
        deadline = time.monotonic() + UNREAD_SECONDS + PATIENCE
        while slow_clients_disconnected not in server.log:
            assert time.monotonic() < deadline, "it was not cut off"
            number += 1
            operations = [
                {"op": "put", "key": f"{number % 100}-{one}", "value": f"w: {number} {'.' * 1000}"}
                for one in range(10)
            ]
            asked = time.monotonic()
            assert client.ask("POST", "/v1/batch", {"operations": operations}).status == 200
            latencies.append(time.monotonic() - asked)
            if number % 100 == 0:
                most = max(most, server.memory())
        most = max(most, server.memory())
        assert client.set("end", "end: 1").revision == number + 1
        follower.join(PATIENCE)
        assert healthy.revision == number + 1, "another reader was held up"

        received = bytearray()
        try:
            while piece := unread.recv(65536):
                received += piece
        except ConnectionError:
            pass
    whole = re.findall(rb"\nid: (\d+)\ndata: [^\n]*}\n\n", received)
    last = int(whole[-1]) if whole else 0
    assert last < number + 1, "it had received all, so nothing was tested"
    with Stream(server, last) as stream:
        events = stream.changes()
        assert [next(events).id for _ in range(3)] == [last + 1, last + 2, last + 3]
    latencies.sort()
    p50, p99 = (latencies[number * percent // 100] * 1000 for percent in (50, 99))
    figure(
        f"a reader that does not read for {UNREAD_SECONDS} s, {number} batches meanwhile: cut off, "
        f"resumed behind revision {last}; {before / 1e6:.0f} MB before, {most / 1e6:.0f} MB at most; "
        f"others' p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    )
    assert most - before < MEMORY
