"""Attacks by isolated transactions: what they read, and that they stay open."""

import pytest

from tests.attacks.judge import withstand


@pytest.mark.parametrize("name", ["many-ranges", "hot-reads", "full-transactions"])
def test_transactions_that_read_much_and_stay_open_do_no_harm_to_others(name: str) -> None:
    withstand([name])
