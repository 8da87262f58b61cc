"""The checker of histories: what it must pass, what it must find, and what it shows of that."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvactor.tools.stress.checker import Verdict, check
from kvactor.tools.stress.history import (
    NEVER,
    FeedEvent,
    History,
    Item,
    Operation,
    Outcome,
    Step,
    lines,
    load,
)


def op(
    *steps: Step,
    at: int,
    time: tuple[float, float],
    outcome: Outcome = "ok",
    client: int = 1,
    told: int | None = None,
) -> Operation:
    """An operation that was told all, at a revision, between two times."""
    began, ended = time
    count = len(steps) if told is None else told
    return Operation("any", client, outcome, began, ended, 0.0, at, list(steps), count)


def unknown(*steps: Step, began: float) -> Operation:
    return op(*steps, at=0, time=(began, NEVER), outcome="info", told=0)


def put(key: str, value: Any, result: Any = None) -> Step:
    return Step("put", key, value, result)


def got(key: str, value: Any = None, revision: int | None = None) -> Step:
    return Step("get", key, None, None if value is None else [value, revision])


def history(
    operations: Sequence[Operation],
    feed: dict[int, dict[str, Any]],
    final: dict[str, tuple[Any, int]] | None = None,
) -> History:
    """A history that ends as the feed says, if it does not end otherwise."""
    keys: dict[str, tuple[Any, int]] = {}
    for revision, changes in feed.items():
        keys.update({key: (value, revision) for key, value in changes.items()})
    there = {key: one for key, one in keys.items() if one[0] is not None} if final is None else final
    return History(
        "",
        list(operations),
        [FeedEvent(revision, changes) for revision, changes in feed.items()],
        final=[Item(key, *one) for key, one in there.items()],
        revision=max(feed, default=0),
    )


FEED: dict[int, dict[str, Any]] = {1: {"a": "1"}, 2: {"b": "2"}, 3: {"a": None}}
WRITES = [
    op(put("a", "1", True), at=1, time=(0, 1)),
    op(put("b", "2", True), at=2, time=(2, 3)),
    op(Step("delete", "a", None, True), at=3, time=(4, 5)),
]


def test_a_serializable_history_passes() -> None:
    reads = [
        op(got("a", "1", 1), at=1, time=(1, 2), client=2),
        op(got("a"), got("b", "2", 2), at=3, time=(5, 6), client=2),
        op(Step("scan", "a", ["c", 10, False], [["b", "2", 2]]), at=3, time=(5, 6), client=3),
        op(Step("delete", "x", None, False), at=2, time=(3, 4), client=3),
    ]
    assert check(history([*WRITES, *reads], FEED)) == Verdict(revisions=3)


def test_writes_at_the_same_time_may_come_in_any_order() -> None:
    writes = [op(put("a", "1"), at=2, time=(0, 9)), op(put("a", "2"), at=1, time=(1, 8), client=2)]
    assert not check(history(writes, {1: {"a": "2"}, 2: {"a": "1"}})).violation


def test_an_unknown_outcome_may_have_happened_or_not() -> None:
    lost = unknown(put("a", "x"), began=0)
    assert check(history([lost], {1: {"a": "x"}})).matched == 1
    assert not check(history([lost], {})).violation


def test_a_revision_without_a_known_writer_is_matched_with_one_unanswered_deletion() -> None:
    deletions = [unknown(Step("delete", "a"), began=2), unknown(Step("delete_range", "", "z"), began=2)]
    feed: dict[int, dict[str, Any]] = {1: {"a": "1"}, 2: {"a": None}, 3: {"a": "2"}, 4: {"a": None}}
    writes = [op(put("a", "1"), at=1, time=(0, 1)), op(put("a", "2"), at=3, time=(3, 4))]
    assert check(history([*writes, *deletions], feed)).matched == 2


def test_a_transaction_may_change_nothing_in_the_end() -> None:
    nothing = [
        op(put("new", "1"), Step("delete", "new", None, True), at=3, time=(5, 6)),
        op(Step("begin"), put("b", "3"), Step("rollback"), got("b", "2", 2), at=3, time=(5, 6)),
    ]
    assert not check(history([*WRITES, *nothing], FEED)).violation


def test_reads_of_a_transaction_that_failed_later_are_checked() -> None:
    seen = op(got("a", "1", 1), put("b", "x"), got("b", "x", 0), at=2, time=(3, 4), outcome="observed")
    assert not check(history([*WRITES, seen], FEED)).violation


BAD: dict[str, tuple[Sequence[Operation], dict[int, dict[str, Any]], str]] = {
    "an acknowledged write is lost": (
        [*WRITES, op(put("c", "3"), at=4, time=(6, 7))],
        FEED,
        "acknowledged at revision 4, and is not there",
    ),
    "two writes are told the same revision": (
        [*WRITES, op(put("a", "3"), at=1, time=(0, 1), client=2)],
        FEED,
        "acknowledged at revision 1, and is not there",
    ),
    "a write is applied twice": (
        WRITES,
        {**FEED, 4: {"a": "1"}},
        "Revision 4 changed ['a'], which nobody",
    ),
    "what was rolled back is there": (
        [*WRITES, op(put("c", "3"), at=3, time=(5, 6), outcome="observed")],
        {**FEED, 4: {"c": "3"}},
        "nobody did, or it was rolled back",
    ),
    "a revision is torn": (
        [op(put("a", "1"), put("b", "1"), at=1, time=(0, 1))],
        {1: {"a": "1"}, 2: {"b": "1"}},
        "is not what its writer did",
    ),
    "a value is wrong": ([*WRITES, op(got("b", "1", 2), at=3, time=(6, 7))], FEED, "was told ['1', 2]"),
    "a read is older than its revision": (
        [*WRITES, op(got("a", "1", 1), at=3, time=(6, 7))],
        FEED,
        "step 1 of what client 1 did: get(a) was told ['1', 1] and not None",
    ),
    "a read is stale": (
        [*WRITES, op(got("a", "1", 1), at=2, time=(6, 7))],
        FEED,
        "what began after that is of revision 2",
    ),
    "a write goes into the past": (
        [
            op(put("a", "1"), at=2, time=(0, 1)),
            op(put("b", "2"), at=1, time=(2, 3)),
        ],
        {1: {"b": "2"}, 2: {"a": "1"}},
        "written into the past",
    ),
    "an update is lost": (
        [
            op(put("a", 1), at=1, time=(0, 1)),
            op(got("a", 1, 1), put("a", 2), at=2, time=(2, 5)),
            op(got("a", 1, 1), put("a", 3), at=3, time=(2, 5), client=2),
        ],
        {1: {"a": 1}, 2: {"a": 2}, 3: {"a": 3}},
        "client 2 did: get(a)",
    ),
    "writes are skewed": (
        [
            op(got("a"), put("b", "1"), at=1, time=(0, 5)),
            op(got("b"), put("a", "2"), at=2, time=(0, 5), client=2),
        ],
        {1: {"b": "1"}, 2: {"a": "2"}},
        "client 2 did: get(b) was told None",
    ),
    "a phantom is let through": (
        [
            op(Step("scan", "a", ["z", 9, False], []), put("zz", "1"), at=2, time=(0, 5)),
            op(put("m", "2"), at=1, time=(1, 2), client=2),
        ],
        {1: {"m": "2"}, 2: {"zz": "1"}},
        "scan(a) was told []",
    ),
    "a transaction sees two states mixed": (
        [
            *WRITES,
            op(got("a", "1", 1), got("b"), at=1, time=(1, 2)),
            op(got("a", "1", 1), at=3, time=(4, 6)),
        ],
        FEED,
        "get(a) was told ['1', 1] and not None",
    ),
    "a deletion finds what is not there": (
        [*WRITES, op(Step("delete", "a", None, True), at=3, time=(6, 7))],
        FEED,
        "delete(a) was told True and not False",
    ),
    "an increment is lost": (
        [
            op(Step("increment", "n", 1, 1), at=1, time=(0, 1)),
            op(Step("increment", "n", 1, 1), at=2, time=(0, 1), client=2),
        ],
        {1: {"n": 1}, 2: {"n": 1}},
        "increment(n) was told 1 and not 2",
    ),
    "a cas is done though the key has changed": (
        [*WRITES, op(Step("cas", "b", [1, "x"], True), at=4, time=(6, 7))],
        {**FEED, 4: {"b": "x"}},
        "cas(b) was told True and not False",
    ),
    "the feed goes back": (WRITES[:1], {2: {"b": "2"}, 1: {"a": "1"}}, "told revision 1 behind 2"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_history_is_a_violation(what: str) -> None:
    operations, feed, sentence = BAD[what]
    verdict = check(history(operations, feed))
    assert sentence in verdict.violation


def test_a_final_state_that_differs_from_the_changes_is_a_violation() -> None:
    verdict = check(history(WRITES, FEED, {"b": ("2", 2), "a": ("1", 1)}))
    assert "In the end a is ('1', 1), and by the changes it is None" in verdict.violation


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([1, 3], "told revision 3 behind 1, and missed"),
        ([1, 2, 2], "told revision 2 behind 2"),
        ([2, 4], "told of revision 4 what is not in the feed"),
    ],
)
def test_a_follower_that_differs_from_the_feed_is_a_violation(told: list[int], sentence: str) -> None:
    one = history(WRITES, FEED)
    one.followers.append([FeedEvent(number, FEED.get(number, {})) for number in told])
    assert sentence in check(one).violation


def test_a_violation_is_shown_with_the_writers_of_its_keys_and_no_other_operation() -> None:
    stale = op(got("a", "1", 1), at=3, time=(6, 7), client=9)
    verdict = check(history([*WRITES, stale], FEED))
    assert verdict.stretch == [stale, WRITES[0], WRITES[2]]
    *_, last = lines(verdict.stretch)
    assert 'client 9   any            ok       at 3        get("a", )=["1",1]' in last


def test_a_saved_history_gets_the_same_verdict(tmp_path: Path) -> None:
    for operations, feed in [(WRITES, FEED), ([*WRITES, unknown(put("a", "9"), began=1)], FEED)]:
        one = history(operations, feed)
        one.save(tmp_path / "history.json")
        assert load(tmp_path / "history.json") == one
        assert check(load(tmp_path / "history.json")) == check(one)
