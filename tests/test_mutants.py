"""The mutants fit the tree: each can be made, breaks one promise, and names killers that exist. And the
runner reports what is killed and what survives. (`scripts/mutants` shows that the mutants are killed.)
"""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.edits import Edit
from tests.mutants.mutant import PROMISES, Mutant, is_command
from tests.mutants.run import ROOT, Options, run

# -- the catalogue --


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_made_and_differs(mutant: Mutant) -> None:
    made = mutant.files(ROOT)
    assert made
    for file, text in made.items():
        assert file.startswith("kvactor/")
        compile(text, file, "exec")
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse((ROOT / file).read_text()))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_killers_of_a_mutant_exist(mutant: Mutant) -> None:
    assert mutant.killed_by
    for killer in mutant.killed_by:
        if is_command(killer):
            assert killer.split()[:3] == ["python", "-m", "kvactor.tools.stress"]
            continue
        file, *name = killer.split("::")
        source = (ROOT / file).read_text()
        assert not name or re.search(rf"^(async )?def {name[0]}\(", source, re.MULTILINE), killer


def test_every_promise_is_broken_and_no_name_stands_for_two_mutants() -> None:
    assert {mutant.promise for mutant in MUTANTS} == set(PROMISES)
    names = Counter(mutant.name for mutant in MUTANTS)
    assert [name for name in names if names[name] > 1] == []


@pytest.mark.parametrize("name", ["p11-no-such-promise", "P1-large", "a-read", "p1"])
def test_a_mutant_whose_name_begins_with_no_promise_is_refused(name: str) -> None:
    mutant = Mutant(name, "It breaks nothing.", edits=(), killed_by=())
    with pytest.raises(ValueError, match=name):
        _ = mutant.promise


def test_a_mutants_edits_of_one_file_come_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "kvactor").mkdir()
    (tmp_path / "kvactor" / "one.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "kvactor" / "two.py").write_text("c = 3\n")
    edits = (
        Edit("kvactor/one.py", "", "a = 1", "a = 4"),
        Edit("kvactor/two.py", "", "3", "6"),
        Edit("kvactor/one.py", "", "a = 4\nb = 2", "b = 5"),
    )
    mutant = Mutant("p1-two-files", "It is an example.", edits, killed_by=("tests",))
    assert mutant.files(tmp_path) == {"kvactor/one.py": "b = 5\n", "kvactor/two.py": "c = 6\n"}
    assert (tmp_path / "kvactor" / "one.py").read_text() == "a = 1\nb = 2\n"


# -- the run --

HARMLESS: Final = Mutant(
    "p1-harmless",
    "It is no error, so that no test fails.",
    edits=(Edit("kvactor/core/records.py", "", "(1 << 64) - 1", "-1 + (1 << 64)"),),
    killed_by=("tests/core/test_records.py",),
)


def ran(
    capsys: pytest.CaptureFixture[str], *mutants: Mutant, unproven: bool = True
) -> tuple[int, list[str]]:
    """Run mutants; return the exit status, and the lines in the order of names."""
    status = run(mutants, Options(jobs=2, limit=60, named=True, unproven=unproven))
    *lines, last = capsys.readouterr().out.splitlines()
    return status, [*sorted(lines), last]


def test_a_mutant_that_a_test_kills_is_killed_and_another_one_survives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit = Edit("kvactor/core/records.py", "_checksum", "crc32(rest, crc32(key))", "(0)")
    status, lines = ran(capsys, HARMLESS, HARMLESS._replace(name="p2-deadly", edits=(edit,)))
    assert status == 1
    assert "SURVIVED: a hole in the tests" in lines[0]
    assert "tests/core/test_records.py::" in lines[1]
    assert "SURVIVED" not in lines[1]
    assert lines[2:] == ["1 of 2 mutants are killed"]


def test_a_mutant_that_cannot_be_made_survives(capsys: pytest.CaptureFixture[str]) -> None:
    edit = Edit("kvactor/core/records.py", "no_such_function", "0", "1")
    status, lines = ran(capsys, HARMLESS._replace(edits=(edit,)))
    assert status == 1
    assert "SURVIVED: cannot be made: kvactor/core/records.py, in no_such_function" in lines[0]


def test_a_killer_that_cannot_pass_is_reported_and_no_mutant_is_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    killers = ("tests/core/test_records.py::test_no_such_test",)
    status, lines = ran(capsys, HARMLESS._replace(killed_by=killers), unproven=False)
    assert status == 2
    assert any("without a mutant" in line for line in lines)
