"""Contention for the same keys: long transactions beside single writes."""

from kvactor.tools.hostile.contention import GOAL, contend, lines
from tests.attacks.judge import BUSY
from tests.process.servers import environment
from tests.sizes import size


def test_each_long_transaction_commits_again_and_again_and_no_change_is_lost_or_done_twice() -> None:
    found = contend(size("contention_seconds"), environment())
    report = "\n".join(lines(found))
    assert not found.failures, report
    assert found.held == found.expected, report
    assert all(found.commits), report
    assert max(found.gaps) < GOAL * BUSY, report
