"""A disk that fails: nobody is told that all went well, the process ends, and the next start recovers
(P10).
"""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.failpoints import armed
from tests.process.servers import Server
from tests.process.strace import CALLS, calls_since, inject
from tests.process.test_kill import FOLDING
from tests.process.writers import Load, check
from tests.sizes import size

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
            assert len(revisions) < 100, "no write fails"
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
        transaction = client.open()
        client.set("one", 1, transaction)
        client.set("two", 2, transaction)
        answer = client.commit(transaction)
        assert (answer.status, answer.body["code"]) == (500, "outcome_unknown")
    assert server.wait() == 1
    assert set(contents(data_dir).records) == {"one", "two"}, "it may have been done, and here it was"


@pytest.mark.parametrize("part", [JOURNAL, TREE], ids=["journal", "tree"])
@pytest.mark.parametrize("call", CALLS)
def test_a_failed_write_or_sync_acknowledges_nothing_falsely_and_is_not_tried_again(
    start: Start,
    tmp_path: Path,
    data_dir: Path,
    part: Path,
    call: str,
    figure: Callable[[str], None],
) -> None:
    contents(data_dir)
    loads: list[Load] = []
    revision = 0
    for nth in range(1, size("disk_faults") + 1):
        error = "ENOSPC" if call != "fdatasync" and nth % 2 == 0 else "EIO"
        log = tmp_path / f"strace-{nth}"
        server = start(*FOLDING, prefix=inject(data_dir / part, call, f"error={error}", nth, log))
        assert server.revision == revision
        # Values of more than a page, so that several pages are written at once.
        with Load(server, f"fault{nth}", largest=10_000) as load:
            load.wait_for_close()
        assert server.wait() == 1
        # 503: the body had not arrived whole yet, and nothing was done.
        assert load.statuses <= {200, 500, 503}
        assert "the owner has failed, the process must end" in server.log
        failed, *later = calls_since(log)
        assert failed == call
        assert "fdatasync" not in later
        loads.append(load)
        after = contents(data_dir)
        check(loads, after)
        revision = after.revision
    acknowledged = sum(load.acknowledged for load in loads)
    figure(
        f"{call} of the {part.parent} fails: {len(loads)} times, {acknowledged} acknowledged writes, "
        "0 lost"
    )


@pytest.mark.parametrize("part", [JOURNAL, TREE], ids=["journal", "tree"])
@pytest.mark.parametrize(("call", "nth"), [("pwrite64", 7), ("fdatasync", 4)])
def test_a_kill_in_the_middle_of_a_commit_to_disk_loses_nothing_acknowledged(
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
