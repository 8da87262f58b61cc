"""Attacks by followers of the changes."""

import pytest

from tests.attacks.judge import withstand


@pytest.mark.parametrize("name", ["streams", "large-changes", "gone-followers"])
def test_followers_of_the_changes_do_not_delay_writes(name: str) -> None:
    withstand([name])
