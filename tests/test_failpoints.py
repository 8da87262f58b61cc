"""Failpoints: their table, how they are set, and that a server without them is untouched."""

import logging
import os
import re
from typing import Any

import pytest

from kvactor import cli, failpoints
from kvactor.cli.deadline import ExitDeadline
from kvactor.failpoints import POINTS, STEPS
from kvactor.settings import FAILPOINTS, PREFIX, Settings
from kvactor.storage.directory import Storage


def function(name: str) -> Any:
    owner, attribute, _ = POINTS[name]
    return getattr(owner, attribute)


@pytest.fixture(autouse=True)
def functions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions that have failpoints, put back at the end."""
    for owner, attribute, _ in POINTS.values():
        monkeypatch.setattr(owner, attribute, getattr(owner, attribute))
    return {name: function(name) for name in POINTS}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, without settings."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    return monkeypatch


def changed(functions: dict[str, Any]) -> set[str]:
    return {name for name, before in functions.items() if function(name) is not before}


def test_every_step_of_a_write_has_a_point_before_and_a_point_after_it() -> None:
    steps = ["stage", "append", "flush", "trim", "apply", "reply", "publish", "fold"]
    assert list(STEPS) == steps
    sides = {f"{step}.{side}" for step in steps for side in ("before", "after")}
    assert set(POINTS) == sides | {"flush.written", "fold.written"}


def test_a_server_without_failpoints_has_no_function_replaced(
    environ: pytest.MonkeyPatch, functions: dict[str, Any]
) -> None:
    seen: list[set[str]] = []

    async def serve(storage: Storage, settings: Settings, where: str, _: ExitDeadline) -> int:
        seen.append(changed(functions))
        return 0

    environ.setattr(cli.serve, "serve", serve)
    environ.setattr(logging, "basicConfig", lambda **_: None)
    assert cli.main(["--memory"]) == 0
    environ.setenv(FAILPOINTS, "")
    assert cli.main(["--memory"]) == 0
    environ.setenv(FAILPOINTS, "stage.before=delay:0")
    assert cli.main(["--memory"]) == 0
    assert seen == [set(), set(), {"stage.before", "stage.after"}]
    assert not any(hasattr(one, "__wrapped__") for one in functions.values())


@pytest.mark.parametrize("point", POINTS)
def test_a_point_named_before_or_after_acts_before_or_after_its_function(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, point: str
) -> None:
    owner, attribute, _ = POINTS[point]
    seen: list[int] = []
    monkeypatch.setattr(owner, attribute, lambda: seen.append(len(caplog.messages)))
    failpoints.arm(failpoints.parse(f"{point}=delay:0"))
    caplog.clear()
    function(point)()
    assert seen == [point.endswith(".before")]
    assert caplog.messages == [f"{failpoints.reached(point)}: delay:0"]


def test_an_action_with_a_count_happens_at_that_arrival_and_one_without_at_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for name in ("stage.before", "apply.after"):
        owner, attribute, _ = POINTS[name]
        monkeypatch.setattr(owner, attribute, lambda: "its result")
    failpoints.arm(failpoints.parse("stage.before=delay:20, apply.after=delay:7@2"))
    assert [function("stage.before")() for _ in range(3)] == ["its result"] * 3
    assert slept == [0.02] * 3
    assert [function("apply.after")() for _ in range(3)] == ["its result"] * 3
    assert slept == [0.02] * 3 + [0.007]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    assert caplog.messages == [
        "failpoint stage.before is armed: delay:20",
        "failpoint apply.after is armed: delay:7@2",
        "failpoint stage.before is reached: delay:20",
        "failpoint apply.after is reached: delay:7@2",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "flush.afterwards=kill",
            "'flush.afterwards' is no failpoint. Did you mean flush.after? They are",
        ),
        ("flush=kill", "'flush' is no failpoint."),
        ("Store.stage", "'Store.stage' is no failpoint."),
        ("stage.after=kill,stage.after=error", "stage.after is named twice."),
        ("stage.after", "'' cannot be done at stage.after. It is one of kill, error, signal and delay"),
        ("stage.after=explode", "'explode' cannot be done at stage.after."),
        ("stage.after=kill@0", "'kill@0' cannot be done"),
        ("stage.after=kill@", "'kill@' cannot be done"),
        ("stage.after=kill@x", "'kill@x' cannot be done"),
        ("stage.after=kill:5", "'kill:5' cannot be done"),
        ("stage.after=delay", "'delay' cannot be done"),
        ("stage.after=delay:-1", "'delay:-1' cannot be done"),
        ("stage.after=delay:1.5", "'delay:1.5' cannot be done"),
        ("stage.after=delay:9999999999", "'delay:9999999999' cannot be done"),
        ("stage.after=error;fold.after=kill", "'error;fold.after=kill' cannot be done"),
    ],
)
def test_a_text_that_is_no_failpoint_is_refused_with_a_sentence_that_names_the_choices(
    environ: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    functions: dict[str, Any],
    text: str,
    sentence: str,
) -> None:
    environ.setenv(FAILPOINTS, text)
    assert cli.main([]) == 2
    reply = capsys.readouterr().err
    assert re.fullmatch(r"kvactor: .+\n", reply)
    assert reply.startswith(f"kvactor: {FAILPOINTS}: {sentence}")
    assert not changed(functions)
