"""docs/reliability.md says what is so: the promises are README's, and their tests are there."""

import re

import pytest

from kvactor.failpoints import POINTS
from tests.examples import ROOT
from tests.mutants.catalogue import MUTANTS
from tests.sizes import SIZES
from tests.web.test_documentation import named, rows

PROMISES = [
    (int(number), text.split())
    for number, text in re.findall(
        r"^(\d+)\. (.*(?:\n   .*)*)",
        (ROOT / "README.md").read_text().partition("## Promises")[2].partition("\n`tests/")[0],
        re.MULTILINE,
    )
]


TABLE = list(rows("reliability.md", "| | promise | tested by |"))
FIGURES = "| what | before a change lands | figures of the longest run |"


def test_the_promises_are_those_of_the_readme_in_their_words() -> None:
    told = [(int(number), promise.split()) for number, promise, _ in TABLE]
    assert [number for number, _ in told] == list(range(1, 11))
    for (number, words), (other, promised) in zip(told, PROMISES, strict=True):
        # README goes on to say what that means.
        assert (number, words) == (other, promised[: len(words)])


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"P{row[0]}")
def test_the_test_files_of_a_promise_exist(row: list[str]) -> None:
    number, _, tested = row
    files = named(tested)
    assert all((ROOT / file).is_file() for file in files)
    assert files[0] == "tests/test_promises.py"
    assert f"test_p{number}_" in (ROOT / files[0]).read_text()


def test_the_sizes_in_the_document_are_those_before_a_change_lands() -> None:
    told = {
        name: int(amount.replace(",", ""))
        for _, cell, _ in rows(
            "reliability.md", "| what | before a change lands | figures of the longest run |"
        )
        for amount, name in re.findall(r"([\d,]+) `(\w+)`", cell)
    }
    assert told
    assert told == {name: size[1] for name, size in SIZES.items() if name in told}


def test_every_failpoint_in_the_document_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    named_there = re.findall(r"`(\w+\.\w+)=", text)
    assert named_there
    assert set(named_there) <= set(POINTS)


def test_the_number_of_mutants_in_the_document_is_that_of_the_catalogue() -> None:
    cells = [told for what, _, told in rows("reliability.md", FIGURES) if what == "mutants"]
    assert cells == [f"{len(MUTANTS)} of {len(MUTANTS)} are killed"]
