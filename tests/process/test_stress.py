"""scripts/stress, as its users run it: against servers of its own, with faults, and against theirs."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kvactor.tools.stress.history import load
from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.servers import Ended, environment, run
from tests.sizes import size
from tests.tools.search import linearizable

OPERATIONS = size("operations")

#: Seconds; a run that takes longer hangs.
PATIENCE = 1800

STRESS = ("-m", "kvactor.tools.stress")


def stress(*arguments: str, cwd: Path) -> Ended:
    return run(
        "--dir",
        str(cwd),
        *arguments,
        cwd=cwd,
        program=STRESS,
        patience=PATIENCE,
    )


def passed(ended: Ended) -> str:
    """Assert that a run has found nothing; return its verdict."""
    assert ended.status == 0, ended.out + ended.log
    verdict = ended.out.splitlines()[-1]
    assert verdict.startswith("strictly serializable: ")
    return verdict


def test_a_server_under_stress_is_strictly_serializable_and_loses_nothing(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    ended = stress("--clients", "50", "--operations", str(OPERATIONS), cwd=tmp_path)
    verdict = passed(ended)
    [counts] = re.findall(r"(\d+) operations in .*", ended.out)
    assert int(counts) >= OPERATIONS
    assert "0 of 0 without one" in verdict
    figure(f"stress: {verdict}")


def test_a_server_that_is_killed_again_and_again_under_stress_loses_nothing_acknowledged(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    operations = max(OPERATIONS // 4, 3000)
    ended = stress(
        *("--clients", "50", "--operations", str(operations), "--faults", "kill", "--hot"),
        cwd=tmp_path,
    )
    verdict = passed(ended)
    [(kills, mid_write)] = re.findall(r"killed (\d+) times, (\d+) of them", ended.out)
    assert int(kills) >= min(20, operations // 1000)
    figure(f"stress, killed {kills} times, {mid_write} of them between two steps of a write: {verdict}")


def test_a_server_that_is_stopped_for_a_while_and_has_a_slow_disk_passes(tmp_path: Path) -> None:
    ended = stress("--seconds", "4", "--faults", "stop,slow-disk", cwd=tmp_path)
    passed(ended)
    assert re.search(r"stopped for a while [1-9]\d* times", ended.out)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    ended = stress(url, cwd=tmp_path)
    reason = f"stress: nothing can be said: cannot connect to {url}: "
    assert (ended.status, ended.out) == (2, "")
    assert ended.log.startswith(reason)
    assert len(ended.log) > len(reason) + 1


def test_a_server_of_the_users_own_is_stressed_again_and_again_without_asserts_too(
    start: Start, tmp_path: Path
) -> None:
    # Nothing may depend on them: `python -O` leaves them out.
    server = start(environ={"PYTHONOPTIMIZE": "1"})
    with Client(server) as client:
        assert client.set("another's", 1).status == 200
        address = f"http://{server.host}:{server.port}"
        for _ in range(2):
            passed(stress(address, "--operations", "1000", "--clients", "10", cwd=tmp_path))
        left = client.ask("GET", "/v1/kv").body["items"]
        assert [(item["key"], item["value"]) for item in left] == [("another's", 1)]
    assert server.stop() == 0


def test_a_search_of_every_order_without_revisions_agrees_with_the_checker(
    start: Start, tmp_path: Path
) -> None:
    server = start()
    few = ("--ttl", "0", "--clients", "4", "--operations", "16", "--keys", "3", "--followers", "0")
    for seed in range(6):
        address = f"http://{server.host}:{server.port}"
        passed(stress(address, *few, "--seed", str(seed), "--save", "history", cwd=tmp_path))
        operations = load(tmp_path / "history").operations
        assert len(operations) >= 16
        assert linearizable(operations)


def test_a_mix_names_the_programs_that_run(tmp_path: Path) -> None:
    ended = stress(
        *("--operations", "300", "--mix", "put=1,shared=1", "--followers", "0", "--save", "history"),
        cwd=tmp_path,
    )
    passed(ended)
    kinds = {one.kind for one in load(tmp_path / "history").operations}
    assert kinds == {"put", "shared", "shared read"}


def test_a_violation_is_shown_saved_and_said_by_the_exit_status(tmp_path: Path) -> None:
    file = tmp_path / "history"
    passed(stress("--operations", "500", "--save", str(file), cwd=tmp_path))
    history = load(file)
    lost = next(one for one in history.operations if one.kind == "put")
    history.feed = [one for one in history.feed if one.revision != lost.revision]
    history.save(file)
    ended = stress("--check", str(file), cwd=tmp_path)
    assert ended.status == 1
    assert f"VIOLATION: A write was acknowledged at revision {lost.revision}" in ended.out
    assert f'put("{lost.steps[0].key}", "{lost.steps[0].argument}")' in ended.out
    assert msgspec.json.decode(file.read_bytes())


def test_a_server_that_ends_by_itself_is_a_violation_and_its_log_is_shown(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [
            sys.executable,
            *STRESS,
            "--dir",
            str(tmp_path),
            "--seconds",
            str(PATIENCE),
        ],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        assert running.stderr is not None
        assert "operations" in running.stderr.readline()
        [server] = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGTERM)
        said, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1
    assert "VIOLATION: the server ended with status 0; its log ends with\n" in said
    assert "INFO kvactor.cli: stopped at revision " in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mix", "put=1,pot=2"], "no such program: pot"),
        (["--mix", "put"], "a mix is like"),
        (["--faults", "kill,fire"], "no such fault: fire"),
        (["localhost"], "a server's URL is like http://127.0.0.1:5000"),
        (["http://127.0.0.1:1", "--faults", "kill"], "--faults are for a server of its own only"),
        (["--clients", "0"], "must be 1 or more"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    ended = stress(*arguments, cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert sentence in ended.log


def test_a_server_that_cannot_be_reached_is_inconclusive(tmp_path: Path) -> None:
    ended = stress("http://127.0.0.1:1", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert "nothing can be said" in ended.log
