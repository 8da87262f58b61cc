"""A disk that fails: nobody is told that all went well, the process ends, and the next start recovers
(P10). A disk that is nearly full: writes are refused before anything is lost.
"""

import contextlib
import json
import resource
from pathlib import Path

import pytest

from bench.preload import key, preload, value
from tests.process.clients import CLOSED, Client, Load, check
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.failpoints import armed
from tests.process.servers import Server
from tests.process.strace import inject
from tests.process.test_kill import FOLDING

JOURNAL = Path("journal", "data.mdb")
TREE = Path("tree", "data.mdb")


def write_until_it_fails(server: Server) -> list[int]:
    """Write one key after the other; return the revisions of those that were acknowledged, and
    assert that the next one's writer is told that nobody knows.
    """
    revisions: list[int] = []
    with Client(server) as client:
        while (answer := client.set(f"key{len(revisions)}", "." * 500)).status == 200:
            revisions.append(answer.revision)
    assert answer.status == 500
    assert "may have been done, or not" in answer.body["error"]
    assert server.wait() == 1
    assert "the journal could not flush" in server.log
    return revisions


def check_after_failure(data_dir: Path, revisions: list[int]) -> None:
    """Assert that what was acknowledged is there, and at most the one write that failed besides."""
    after = contents(data_dir)
    assert revisions == list(range(1, len(revisions) + 1))
    assert after.revision in {len(revisions), len(revisions) + 1}
    assert sorted(record.revision for record in after.records.values()) == list(
        range(1, after.revision + 1)
    )


@pytest.mark.parametrize(("call", "error"), [("fdatasync", "EIO"), ("pwrite64", "ENOSPC")])
def test_a_write_whose_flush_fails_is_not_acknowledged_and_the_process_ends(
    start: Start, data_dir: Path, call: str, error: str
) -> None:
    contents(data_dir)
    server = start(prefix=inject(data_dir / JOURNAL, call, f"error={error}", 7))
    revisions = write_until_it_fails(server)
    assert revisions
    check_after_failure(data_dir, revisions)
    with Client(start()) as client:
        assert client.get("key0").body == {"key": "key0", "value": "." * 500}
        assert client.set("key", "value").status == 200


def test_a_commit_whose_flush_fails_has_the_code_outcome_unknown(start: Start, data_dir: Path) -> None:
    server = start(environ=armed("flush.after=error"))
    with Client(server) as client:
        within = client.open()
        client.set("one", 1, within)
        client.set("two", 2, within)
        answer = client.commit(within)
        assert (answer.status, answer.body["code"]) == (500, "outcome_unknown")
    assert server.wait() == 1
    assert set(contents(data_dir).records) == {"one", "two"}, "it may have been done, and here it was"


@pytest.mark.parametrize("part", [JOURNAL, TREE], ids=["journal", "tree"])
@pytest.mark.parametrize(("call", "nth"), [("pwrite64", 7), ("fdatasync", 4)])
def test_killed_in_the_middle_of_a_commit_to_disk_nothing_acknowledged_is_lost(
    start: Start, data_dir: Path, part: Path, call: str, nth: int
) -> None:
    contents(data_dir)
    server = start(*FOLDING, prefix=inject(data_dir / part, call, "signal=KILL", nth))
    with Load(server) as load:
        load.wait_for_close()
    assert server.wait() == -9
    check([load], contents(data_dir))


def test_a_file_system_that_is_full_without_warning_loses_nothing_acknowledged(
    start: Start, data_dir: Path
) -> None:
    server = start()
    size = (data_dir / JOURNAL).stat().st_size
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 100_000, size + 100_000))
    revisions = write_until_it_fails(server)
    assert len(revisions) > 20
    check_after_failure(data_dir, revisions)


def test_with_little_free_space_writes_are_refused_and_reads_go_on(
    start: Start, data_dir: Path
) -> None:
    preload(data_dir, 1)
    server = start(environ={"KVACTOR_MIN_FREE_SPACE": str(1 << 60)})
    with Client(server) as client:
        refused = [client.set(key(0), "new"), client.set("other", 1), client.delete(key(0))]
        assert [answer.status for answer in refused] == [507] * 3
        assert all(list(answer.body) == ["error"] for answer in refused)
        assert client.get(key(0)).body == {"key": key(0), "value": json.loads(value(0))}
        within = client.open()
        assert client.set(key(0), "new", within).status == 507
    assert server.stop() == 0
    assert contents(data_dir).revision == 1


def test_a_tree_that_is_nearly_full_refuses_writes_before_a_fold_fails(
    start: Start, data_dir: Path
) -> None:
    sizes = {"map": 16 << 20, "min-free": 8 << 20, "memtable": 1 << 20}
    server = start(
        *("--map-size", str(sizes["map"]), "--min-free-space", str(sizes["min-free"])),
        *("--memtable-size", str(sizes["memtable"]), "--history", "0"),
    )
    written = 0
    with Client(server) as client:
        while (status := client.set(f"key{written}", "." * 500_000).status) == 200:
            written += 1
        assert (status, server.log.count("ERROR")) == (507, 0)
        assert client.get("key0").status == 200
    assert server.stop() == 0
    assert len(contents(data_dir).records) == written


def test_out_of_file_descriptors_open_connections_are_served_and_new_ones_later(start: Start) -> None:
    server = start()
    with Client(server) as early:
        assert early.set("key", "value").status == 200
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path("/proc", str(server.pid), "fd").iterdir()))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        with Client(server) as refused:
            refused.send("GET", "/get/key")
            for _ in range(100):
                assert early.set("key", "value").status == 200
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
            with contextlib.suppress(*CLOSED):
                assert refused.receive().status == 200
        with Client(server) as late:
            assert late.get("key").status == 200
    assert server.stop() == 0
