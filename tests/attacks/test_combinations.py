"""Several attacks at once: random combinations. The test's id is the seed of its own."""

from pathlib import Path

import pytest

from kvactor.tools.hostile.__main__ import combinations
from kvactor.tools.hostile.attacks import ATTACKS
from tests.attacks.judge import withstand
from tests.sizes import size


@pytest.mark.parametrize("seed", range(size("combinations")), ids=lambda seed: f"seed {seed}")
def test_attacks_at_once_do_no_more_harm_than_one(seed: int) -> None:
    [names] = combinations(1, seed)
    withstand(names, f"--random 1 --seed {seed}")


def test_a_seed_chooses_the_same_combination_each_time() -> None:
    assert combinations(5, 3) == combinations(5, 3)
    assert combinations(5, 3)[:1] == combinations(1, 3)


def test_each_attack_belongs_to_a_family() -> None:
    text = "".join(one.read_text() for one in sorted(Path(__file__).parent.glob("test_*.py")))
    assert [name for name in ATTACKS if text.count(f'"{name}"') != 1] == []
