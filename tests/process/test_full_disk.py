"""Room on the disk, room in the map, and file descriptors run out: writes are refused before anything
is lost, and reads go on. If no free space is to be left, the disk is full at some time, which is as
if it had failed (P10).
"""

import contextlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvactor.tools.bench.preload import key, preload, value
from tests.process.clients import CLOSED, Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.disks import Disk, tmpfs
from tests.process.servers import until
from tests.process.writers import Load, check

MiB = 1 << 20


def put(client: Client, key: str, size: int) -> int:
    """Write a key, and try again while folds make room; return the status."""
    statuses = (client.set(key, "." * size).status for _ in range(10_000))
    return next(status for status in statuses if status != 503)


def fill(client: Client, size: int) -> int:
    """Write keys until the disk is full; return how many."""
    written = 0
    while (status := put(client, f"key{written}", size)) == 200:
        written += 1
    assert status == 507
    return written


# -- refused before --


def test_writes_with_little_free_space_are_refused_and_reads_go_on(
    start: Start, data_dir: Path
) -> None:
    preload(data_dir, 1)
    server = start(environ={"KVACTOR_MIN_FREE_SPACE": str(1 << 60)})
    with Client(server) as client:
        refused = [client.set(key(0), "new"), client.set("other", 1), client.delete(key(0))]
        assert [answer.status for answer in refused] == [507] * 3
        assert all(list(answer.body) == ["error"] for answer in refused)
        assert client.get(key(0)).body == {"key": key(0), "value": json.loads(value(0))}
        transaction = client.open()
        assert client.set(key(0), "new", transaction).status == 507
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
    with Client(server) as client:
        written = fill(client, 500_000)
        assert (written > 0, server.log.count("ERROR")) == (True, 0)
        assert client.get("key0").status == 200
    assert server.stop() == 0
    assert len(contents(data_dir).records) == written


# -- a small disk --


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with tmpfs(tmp_path, 6 * MiB) as disk:
        yield disk


@pytest.fixture
def on_disk(disk: Disk) -> tuple[str, str]:
    return ("--data-dir", str(disk.path / "data"))


def test_a_disk_that_is_full_ends_the_process_and_the_next_start_has_all_that_was_acknowledged(
    start: Start, disk: Disk, on_disk: tuple[str, str], figure: Callable[[str], None]
) -> None:
    ballast = disk.path / "ballast"
    ballast.write_bytes(bytes(2 * MiB))
    server = start(*on_disk, "--min-free-space", "0", "--memtable-size", "100000")
    with Load(server, largest=10_000) as load:
        load.wait_for_close()
    assert server.wait() == 1
    assert load.statuses <= {200, 500, 503}
    assert "the owner has failed, the process must end" in server.log

    told = load.writers[0].told
    still_full = start(*on_disk)
    with Client(still_full) as client:
        for name, (text, _) in told.items():
            answer = client.get(name)
            assert (answer.status, answer.body.get("value")) == (404 if text is None else 200, text)
        assert client.set("key", "value").status == 507
    still_full.kill()

    ballast.unlink()
    check([load], contents(disk.path / "data"))
    again = start(*on_disk, "--min-free-space", "0")
    with Client(again) as client:
        assert client.set("key", "value").status == 200
    assert again.stop() == 0
    figure(f"full disk: {load.acknowledged} acknowledged writes, 0 lost")


def test_a_disk_that_is_nearly_full_is_read_and_when_there_is_room_it_is_written_again(
    start: Start, disk: Disk, on_disk: tuple[str, str]
) -> None:
    ballast = disk.path / "ballast"
    ballast.write_bytes(bytes(2 * MiB))
    server = start(*on_disk, "--min-free-space", str(2 * MiB), "--memtable-size", "100000")
    with Client(server) as client:
        written = fill(client, 10_000)
        assert written > 50
        until(lambda: "writes are refused (507)" in server.log, "a warning")
        assert all(client.get(f"key{number}").status == 200 for number in range(written))
        assert client.ask("GET", "/v1/kv").status == 200
        ballast.unlink()
        until(lambda: client.set("key", "value").status == 200, "a write")
        until(lambda: "writes are accepted again" in server.log, "the log")
    assert server.stop() == 0
    assert "ERROR" not in server.log
    assert len(contents(disk.path / "data").records) == written + 1


# -- no trap --


def overwrite(client: Client, times: int) -> list[int]:
    return [put(client, "key", 100_000) for _ in range(times)]


def test_a_key_that_is_overwritten_fills_no_disk(
    start: Start, disk: Disk, on_disk: tuple[str, str]
) -> None:
    server = start(*on_disk, "--min-free-space", str(2 * MiB), "--memtable-size", "500000")
    with Client(server) as client:
        # 20 MB on a disk of 6: the history is given up.
        assert overwrite(client, 200) == [200] * 200
        changes = client.ask("GET", "/v1/changes?since=0")
        assert (changes.status, changes.body["code"]) == (410, "history_gone")
    assert server.stop() == 0
    assert "ERROR" not in server.log


@pytest.mark.parametrize("history", ["0", "100000"])
def test_a_disk_that_history_has_filled_is_written_again_after_a_restart(
    start: Start, disk: Disk, on_disk: tuple[str, str], history: str
) -> None:
    server = start(*on_disk, "--min-free-space", "0", "--memtable-size", "200000")
    with Client(server) as client:
        free = 2 * MiB
        while shutil.disk_usage(disk.path).free >= free:
            client.set("key", "." * 100_000)
    assert server.stop() == 0
    small = ("--min-free-space", str(free), "--memtable-size", "200000", "--history", history)
    server = start(*on_disk, *small)
    with Client(server) as client:
        until(lambda: client.set("key", "value").status == 200, "a write")
        assert overwrite(client, 100) == [200] * 100
    assert server.stop() == 0


def test_a_full_disk_is_emptied_by_deletions_and_filled_again(
    start: Start, disk: Disk, on_disk: tuple[str, str]
) -> None:
    server = start(*on_disk, "--min-free-space", str(2 * MiB), "--memtable-size", "200000")
    with Client(server) as client:
        first = fill(client, 10_000)
        assert first > 50
        for number in range(first):
            statuses = (client.delete(f"key{number}").status for _ in range(10_000))
            assert next(status for status in statuses if status != 503) == 200
        until(lambda: client.set("other", "value").status == 200, "a write")
        assert fill(client, 10_000) > first // 2
    assert server.stop() == 0
    assert "ERROR" not in server.log


@pytest.mark.parametrize("size", [20_000, 100_000, 700_000])
@pytest.mark.parametrize("ratio", [2.5, 4])
def test_a_disk_that_was_filled_and_emptied_is_filled_again_and_again(
    start: Start, tmp_path: Path, ratio: float, size: int
) -> None:
    floor = 4 * MiB
    with tmpfs(tmp_path, 24 * MiB) as disk:
        flags = ("--min-free-space", str(floor), "--memtable-size", str(int(floor / ratio)))
        server = start("--data-dir", str(disk.path / "data"), *flags)
        with Client(server) as client:
            written = []
            for turn in range(5):
                written.append(fill(client, size))
                until(lambda: client.ask("DELETE", "/v1/kv?all=true").status == 200, "deletions")
                if turn == 2:
                    # Others use all that an emptied store does not need.
                    taken = shutil.disk_usage(disk.path).free - floor // 2 - MiB // 4
                    (disk.path / "ballast").write_bytes(bytes(taken))
                until(lambda: client.set("key", "." * size).status == 200, "a write")
                client.delete("key")
            assert min(written[:3]) >= max(written[:3]) * 3 // 4 > 0
            assert min(written[3:]) > 0
        assert server.stop() == 0
        assert "ERROR" not in server.log


# -- file descriptors --


def test_a_server_out_of_file_descriptors_serves_open_connections_and_new_ones_later(
    start: Start,
) -> None:
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
