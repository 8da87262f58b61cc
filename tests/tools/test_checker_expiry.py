"""The checker and keys that expire: what it must pass, and what it must find. Times are the server's,
in milliseconds; `a` is written at 100, and expires at 150.
"""

from typing import Any

import pytest

from kvactor.tools.stress.checker import check
from kvactor.tools.stress.history import (
    NEVER,
    FeedEvent,
    History,
    Item,
    Operation,
    Outcome,
    Step,
)

#: Real time, for operations that were all under way at once.
ALWAYS = (0.0, 9.0)


def op(
    *steps: Step,
    revision: int,
    at: int,
    when: tuple[float, float] = ALWAYS,
    outcome: Outcome = "ok",
) -> Operation:
    """An operation with all its results, at a revision and at a time of the server's."""
    return Operation("any", 1, outcome, *when, 0.0, revision, list(steps), len(steps), "", time=at)


def put(key: str, value: Any, ttl: int = 0, *, at: int = 0) -> Step:
    return Step("put", key, value, ttl=ttl, time=at)


def got(key: str, value: Any = None, revision: int = 0, *, at: int = 0) -> Step:
    return Step("get", key, None, None if value is None else [value, revision], time=at)


def scanned(*items: list[Any], limit: int = 9, reverse: bool = False) -> Step:
    return Step("scan", "a", ["z", limit, reverse], list(items))


WRITE = op(put("a", "1", 50), revision=1, at=100)
WRITTEN = FeedEvent(1, {"a": "1"}, {"a": 150}, 100)
ALIVE, EXPIRED = got("a", "1", 1), got("a")


def swept(revision: int, time: int) -> FeedEvent:
    return FeedEvent(revision, {"a": None}, {}, time)


def violation(
    feed: list[FeedEvent], *operations: Operation, final: tuple[Item, ...] = (), time: int = 1000
) -> str:
    newest = max(event.revision for event in feed)
    return check(
        History("", list(operations), feed, final=list(final), revision=newest, time=time)
    ).violation


def test_a_key_is_there_until_it_expires_and_not_after() -> None:
    reads = [
        op(ALIVE, scanned(["a", "1", 1]), revision=1, at=149),
        op(EXPIRED, scanned(), revision=1, at=150),
        op(EXPIRED, revision=2, at=170),
    ]
    assert violation([WRITTEN, swept(2, 160)], WRITE, *reads) == ""


@pytest.mark.parametrize(
    ("step", "at", "sentence"),
    [
        (EXPIRED, 149, "get(a) was told None and not ['1', 1]"),
        (ALIVE, 150, "get(a) was told ['1', 1] and not None"),
        (scanned(["a", "1", 1]), 150, "scan(a) was told"),
        (Step("delete", "a", None, True), 150, "delete(a) was told True and not False"),
        (Step("cas", "a", [1, "2"], True), 150, "cas(a) was told True and not False"),
    ],
)
def test_a_result_that_its_time_does_not_allow_is_found(step: Step, at: int, sentence: str) -> None:
    assert sentence in violation([WRITTEN], WRITE, op(step, revision=1, at=at))


def test_a_put_of_an_expired_key_creates_it_and_ends_the_expiry() -> None:
    again = op(Step("put", "a", "2", True), revision=2, at=160)
    feed = [WRITTEN, FeedEvent(2, {"a": "2"}, {}, 160)]
    assert violation(feed, WRITE, again, final=(Item("a", "2", 2),)) == ""
    replaced = op(Step("put", "a", "2", False), revision=2, at=160)
    assert "put(a) was told False and not True" in violation(feed, WRITE, replaced)


@pytest.mark.parametrize(("expires_at", "good"), [(150, True), (151, False), (0, False)])
def test_an_expiry_is_the_time_of_the_write_and_its_ttl(expires_at: int, good: bool) -> None:
    event = FeedEvent(1, {"a": "1"}, {"a": expires_at} if expires_at else {}, 100)
    assert (violation([event], WRITE, final=(Item("a", "1", 1),)) == "") is good


def test_the_time_of_a_write_without_a_response_is_that_of_its_revision() -> None:
    lost = Operation("put", 1, "info", 0, NEVER, 0, steps=[put("a", "1", 50)])
    assert violation([WRITTEN], lost) == ""
    assert "nobody did" in violation([FeedEvent(1, {"a": "1"}, {"a": 149}, 100)], lost)


def test_a_write_inside_a_transaction_expires_by_the_time_of_its_request() -> None:
    steps = [put("a", "1", 50, at=100), got("a", "1", 0, at=149), got("a", at=150)]
    feed = [FeedEvent(1, {"a": "1"}, {"a": 150}, 300)]
    assert violation(feed, op(*steps, revision=1, at=300)) == ""
    late = [FeedEvent(1, {"a": "1"}, {"a": 350}, 300)]
    assert "is not what its writer did" in violation(late, op(*steps, revision=1, at=300))


def test_reads_of_a_transaction_are_checked_at_the_time_of_its_commit() -> None:
    feed = [WRITTEN, FeedEvent(2, {"b": "2"}, {}, 160)]
    steps = [got("a", "1", 1, at=120), put("b", "2", at=130)]
    assert "get(a) was told ['1', 1] and not None" in violation(
        feed, WRITE, op(*steps, revision=2, at=160)
    )


def test_an_increment_keeps_the_expiry() -> None:
    number = op(put("n", 1, 50), revision=1, at=100)
    more = op(Step("increment", "n", 1, 2), revision=2, at=149)
    first = FeedEvent(1, {"n": 1}, {"n": 150}, 100)
    assert violation([first, FeedEvent(2, {"n": 2}, {"n": 150}, 149)], number, more) == ""
    assert violation([first, FeedEvent(2, {"n": 2}, {}, 149)], number, more) != ""


# -- sweeps --


@pytest.mark.parametrize(
    ("event", "good"),
    [
        (swept(2, 150), True),
        (swept(2, 149), False),
        (FeedEvent(2, {"a": None, "b": None}, {}, 150), False),
        (FeedEvent(2, {"a": "2"}, {}, 150), False),
    ],
)
def test_a_sweep_deletes_expired_keys_only(event: FeedEvent, good: bool) -> None:
    other = op(put("b", "1"), revision=1, at=100)
    both = FeedEvent(1, {"a": "1", "b": "1"}, {"a": 150}, 100)
    one = op(put("a", "1", 50), *other.steps, revision=1, at=100)
    kept = (Item("b", "1", 1),)
    found = violation([both, event], one, final=kept if good else ())
    assert ("which nobody did" in found) is not good


@pytest.mark.parametrize(("time", "good"), [(150, True), (149, False), (0, False)])
def test_a_key_may_be_gone_in_the_end_if_it_has_expired_by_then(time: int, good: bool) -> None:
    assert (violation([WRITTEN], WRITE, time=time) == "") is good


# -- expiry is one event for all --

BATCH = op(ALIVE, put("b", "2"), revision=2, at=140)
BOTH = [WRITTEN, FeedEvent(2, {"b": "2"}, {}, 140)]
B = (Item("b", "2", 2),)


def test_a_scan_that_misses_an_expired_key_and_the_batch_that_still_read_it_is_found() -> None:
    scan = op(scanned(), revision=1, at=150)
    found = violation(BOTH, WRITE, BATCH, scan, final=B)
    assert "At revision 1, client 1 found a expired; at revision 2, client 1 still found it" in found


def test_a_read_of_an_expired_key_alone_may_come_behind_the_batch() -> None:
    assert violation(BOTH, WRITE, BATCH, op(EXPIRED, revision=1, at=150), final=B) == ""


def test_a_scan_up_to_a_limit_does_not_look_at_what_is_behind_it() -> None:
    write = op(put("a", "1", 50), put("k", "1"), revision=1, at=100)
    batch = op(ALIVE, put("b", "2"), put("m", "2"), revision=2, at=140)
    feed = [
        FeedEvent(1, {"a": "1", "k": "1"}, {"a": 150}, 100),
        FeedEvent(2, {"b": "2", "m": "2"}, {}, 140),
    ]
    final = (*B, Item("k", "1", 1), Item("m", "2", 2))
    last = op(scanned(["k", "1", 1], limit=1, reverse=True), revision=1, at=150)
    assert violation(feed, write, batch, last, final=final) == ""
    first = op(scanned(["k", "1", 1], limit=1), revision=1, at=150)
    assert "still found it" in violation(feed, write, batch, first, final=final)


def test_a_read_of_an_expired_key_that_had_ended_does_not_come_behind_the_batch() -> None:
    write = op(*WRITE.steps, revision=1, at=100, when=(0, 1))
    expired = op(EXPIRED, revision=1, at=150, when=(1, 2))
    batch = op(*BATCH.steps, revision=2, at=140, when=(3, 4))
    assert "still found it" in violation(BOTH, write, expired, batch, final=B)


def test_a_key_seen_expired_is_not_seen_alive_by_an_operation_that_began_later() -> None:
    expired = op(EXPIRED, revision=1, at=150, when=(1, 2))
    alive = op(ALIVE, revision=1, at=149, when=(3, 4))
    write = op(*WRITE.steps, revision=1, at=100, when=(0, 1))
    assert "still found it, and comes behind" in violation([WRITTEN], write, expired, alive)
    alive.began = 1.5
    assert violation([WRITTEN], write, expired, alive) == ""


def test_a_writer_that_found_a_key_expired_is_not_behind_a_later_one_that_found_it() -> None:
    first = op(EXPIRED, put("c", "1"), revision=2, at=150)
    second = op(ALIVE, put("b", "2"), revision=3, at=140)
    feed = [WRITTEN, FeedEvent(2, {"c": "1"}, {}, 150), FeedEvent(3, {"b": "2"}, {}, 140)]
    final = (Item("b", "2", 3), Item("c", "1", 2))
    assert "still found it" in violation(feed, WRITE, first, second, final=final)
