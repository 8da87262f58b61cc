"""Attacks that ask for much work with a small request."""

import pytest

from tests.attacks.judge import withstand


@pytest.mark.parametrize("name", ["delete-ranges", "tombstones", "large-values"])
def test_work_for_one_client_leaves_turns_to_others(name: str) -> None:
    withstand([name])
