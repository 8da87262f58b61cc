"""The bugs on purpose fit the tree: each can be applied, and says which promise it breaks and which
test is to catch it. (That they are caught, `scripts/bugs` shows.)
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.bugs import HERE, PROMISES, Bug, bugs, is_command, load
from tests.bugs.__main__ import ROOT

BUGS: Final = bugs()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_on_purpose_can_be_applied(bug: Bug) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    environ = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    applied = subprocess.run(
        [git, "apply", "--check", str(bug.path)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, applied.stderr


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_what_is_to_catch_a_bug_is_there(bug: Bug) -> None:
    for catcher in bug.catchers:
        if is_command(catcher):
            assert catcher[1:3] == ("-m", "kvactor.tools.stress")
            continue
        for argument in catcher:
            file, *name = argument.split("::")
            source = (ROOT / file).read_text()
            assert not name or re.search(rf"^(async )?def {name[0]}\(", source, re.MULTILINE), argument


def test_every_promise_is_broken_and_nothing_else_is_touched() -> None:
    assert {bug.promise for bug in BUGS} == set(PROMISES)
    for bug in BUGS:
        assert bug.name.startswith(f"{bug.promise.lower()}-")
        touched = re.findall(r"^\+\+\+ b/(\S+)$", bug.path.read_text(), re.MULTILINE)
        assert touched
        assert all(file.startswith("kvactor/") for file in touched)


@pytest.mark.parametrize(
    "head",
    [
        "Caught by: tests",
        "Promise: P3",
        "Promise: P11\nCaught by: tests",
        "Promise: P1\nPromise: P2\nCaught by: tests",
    ],
)
def test_a_patch_that_does_not_say_what_it_breaks_is_refused(tmp_path: Path, head: str) -> None:
    patch = tmp_path / "bug.patch"
    patch.write_text(f"What is wrong.\n\n{head}\n\n--- a/kvactor/store.py\n+++ b/kvactor/store.py\n")
    with pytest.raises(ValueError, match=r"bug\.patch has to name one promise"):
        load(patch)


def test_there_are_patches_where_they_are_looked_for() -> None:
    assert len(BUGS) == len(list(HERE.glob("*.patch"))) >= len(PROMISES)
