"""Failpoints in a server: all of them are reached, and an error at any of them ends it safely (P10)."""

import contextlib
from pathlib import Path
from random import Random

import pytest

from kvactor.failpoints import POINTS, STEPS, reached
from kvactor.settings import Settings
from kvactor.storage.directory import open_directory
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.failpoints import armed
from tests.process.servers import until
from tests.process.test_kill import FOLDING, rounds_at
from tests.process.writers import Load, check
from tests.sizes import size


def test_a_few_writes_folds_and_trims_reach_every_failpoint(start: Start, data_dir: Path) -> None:
    server = start(*FOLDING, environ=armed(*(f"{point}=delay:0" for point in POINTS)))
    assert all(f"failpoint {point} is armed: delay:0" in server.log for point in POINTS)
    with Load(server) as load:
        with contextlib.suppress(TimeoutError):
            until(lambda: missing(server.log) == [], "every failpoint")
        assert missing(server.log) == []
        load.wait_for(100)
    assert server.stop() == 0
    with open_directory(data_dir, Settings().map_size) as storage:
        assert storage.tree.applied > 0
        assert next(storage.journal.replay(0)).number > 1


def missing(log: str) -> list[str]:
    return [point for point in POINTS if reached(point) not in log]


def test_the_log_of_a_server_without_failpoints_names_none(start: Start) -> None:
    server = start(*FOLDING)
    with Load(server) as load:
        load.wait_for(200)
    assert server.stop() == 0
    assert "failpoint" not in server.log


@pytest.mark.parametrize("step", STEPS)
def test_an_error_before_within_or_after_a_step_is_no_false_acknowledgement_and_ends_the_process(
    start: Start, data_dir: Path, step: str
) -> None:
    random = Random(f"error at {step}")
    loads: list[Load] = []
    revision = 0
    for number, (point, nth) in enumerate(rounds_at(step, random, size("errors"))):
        # Longer than the test's patience: it does not wait for answers that nobody gives any more.
        patient = ("--shutdown-timeout", "600")
        server = start(*FOLDING, *patient, environ=armed(f"{point}=error@{nth}"))
        assert server.revision == revision
        with Load(server, f"round{number}", transactional=random.random() < 0.5) as load:
            load.wait_for_close()
        assert server.wait() == 1
        # 503: the body had not arrived whole yet, and nothing was done.
        assert load.statuses <= {200, 201, 500, 503}
        assert reached(point) in server.log
        assert "the owner has failed, the process must end" in server.log
        assert "Input/output error" in server.log
        loads.append(load)
        after = contents(data_dir)
        check(loads, after)
        revision = after.revision
