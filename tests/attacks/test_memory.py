"""Attacks with large responses, which wait for their readers."""

import pytest

from tests.attacks.judge import withstand


@pytest.mark.parametrize("name", ["large-batches", "unread-values"])
def test_responses_that_nobody_reads_are_bounded_in_memory(name: str) -> None:
    withstand([name])
