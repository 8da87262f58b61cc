"""Attacks below the requests: heads without an end, pipelines, and bytes that are no request."""

import pytest

from tests.attacks.judge import withstand


@pytest.mark.parametrize("name", ["endless-heads", "pipelined", "malformed"])
def test_connections_that_send_no_proper_requests_do_no_harm(name: str) -> None:
    withstand([name])
