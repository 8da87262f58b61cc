"""Histories in which more than one operation could have written a revision: what was needless, because
it had been done before, is told the same revision.
"""

from kvactor.tools.stress.checker import check
from kvactor.tools.stress.history import NEVER, FeedEvent, History, Item, Operation, Step

DROP = Step("drop", "a")
FEED = [FeedEvent(1, {"a": "1"}), FeedEvent(2, {"a": None}), FeedEvent(3, {"b": "2"})]
WRITES = [
    Operation("put", 1, "ok", 0, 1, 1, 1, [Step("put", "a", "1", True)], 1),
    Operation("put", 1, "ok", 9, 10, 1, 3, [Step("put", "b", "2", True)], 1),
]


def violation(*operations: Operation) -> str:
    final = [Item("b", "2", 3)]
    return check(History("", [*WRITES, *operations], FEED, final=final, revision=3)).violation


def test_the_one_of_two_deletions_that_found_the_key_made_the_revision() -> None:
    needless = Operation("shared", 2, "ok", 2, 3, 1, 2, [DROP], 0)
    deleted = Operation("delete", 3, "ok", 2, 4, 2, 2, [Step("delete", "a", None, True)], 1)
    assert violation(needless, deleted) == ""
    assert violation(deleted, needless) == ""


def test_a_deletion_that_began_after_the_key_was_seen_missing_did_not_make_the_revision() -> None:
    lost = Operation("delete", 2, "info", 2, NEVER, 0, 0, [Step("delete", "a")], 0)
    saw = Operation("get", 3, "ok", 2, 4, 2, 2, [Step("get", "a")], 1)
    needless = Operation("shared", 4, "ok", 5, 6, 1, 2, [DROP], 0)
    assert violation(saw, needless, lost) == ""
    assert "stale" in violation(saw, needless)


def test_two_deletions_that_both_found_the_key_are_a_violation() -> None:
    steps = [Step("delete", "a", None, True)]
    one = Operation("delete", 2, "ok", 2, 3, 1, 2, steps, 1)
    other = Operation("delete", 3, "ok", 2, 4, 2, 2, steps, 1)
    assert "delete(a) was told True" in violation(one, other)
