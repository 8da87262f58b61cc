"""The account of work: what a message walks is charged, and bounded."""

from typing import Any

import pytest

from kvactor.core.executor import PAGE_WORK
from kvactor.core.messages import AUTOCOMMIT, Check, Commit, Execute, Message, Open, Presence
from kvactor.core.operations import Delete, DeleteRange, Get, Increment, Range, Set
from kvactor.core.work import LOOKUP, WRITE, Work
from kvactor.errors import RequestTooExpensive
from kvactor.settings import Settings
from tests.core.builders import batch, delete, get, keys, put, scan, value
from tests.core.harness import HeldTree, OwnerHarness

MANY = 10_000

#: The largest honest batches.
LARGEST: dict[str, Message[Any]] = {
    "puts": batch(*(Set(b"%d" % number, b"x" * 100, "") for number in range(MANY))),
    "gets": batch(*(Get(b"%d" % number) for number in range(MANY))),
    "deletes": batch(*(Delete(b"%d" % number) for number in range(MANY))),
    "increments": batch(*(Increment(b"n%d" % number, 1) for number in range(MANY))),
    "checks": batch(checks=[Check(b"%d" % number, Presence.ABSENT) for number in range(MANY)]),
    "delete range": batch(DeleteRange(b"", None)),
}


def tombstones(harness: OwnerHarness, number: int) -> None:
    """Leave so many tombstones in the memtable."""
    tree = harness.tree
    assert isinstance(tree, HeldTree)
    harness.ask(batch(*(Set(b"%06d" % one, b"1", "") for one in range(number))))
    harness.ask(batch(DeleteRange(b"", None)))


def test_a_charge_beyond_the_limit_is_refused() -> None:
    work = Work(10)
    work.charge(10)
    work.require(0)
    with pytest.raises(RequestTooExpensive):
        work.require(1)
    with pytest.raises(RequestTooExpensive):
        work.charge(1)


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_honest_batches_are_done(name: str) -> None:
    harness = OwnerHarness()
    if name == "delete range":
        harness.ask(LARGEST["puts"])
    assert harness.ask(LARGEST[name]).error is None


def test_a_batch_that_must_be_too_expensive_is_refused_before_it_walks() -> None:
    harness = OwnerHarness()
    harness.ask(put(b"a"))
    expensive = batch(*(DeleteRange(b"a", b"b") for _ in range(MANY)))
    reply = harness.send(expensive)
    assert isinstance(reply.error, RequestTooExpensive)
    assert reply.error.details["limit"] == Settings().max_request_work
    assert value(harness, b"a") == b"1"


@pytest.mark.parametrize("settings", [Settings(max_request_work=1000)])
def test_lookups_and_writes_are_charged(settings: Settings) -> None:
    harness = OwnerHarness(settings=settings)
    few, many = (1000 - 10) // LOOKUP, 1000 // LOOKUP + 1
    assert harness.ask(batch(checks=[Check(b"a", Presence.ABSENT)] * few)).error is None
    for message in (
        batch(checks=[Check(b"a", Presence.ABSENT)] * many),
        batch(*[Get(b"a")] * many),
        batch(*[Set(b"a", b"1", "")] * (1000 // WRITE + 1)),
    ):
        assert isinstance(harness.ask(message).error, RequestTooExpensive)
    assert value(harness, b"a") is None


def test_what_a_range_steps_over_is_charged_and_the_page_is_cut_short_there() -> None:
    harness = OwnerHarness(tree=HeldTree())
    tombstones(harness, MANY)
    harness.ask(put(b"~last"))
    start, pages, items = b"", 0, []
    while True:
        page = harness.ask(scan(start, None, 1)).result
        assert page.work <= PAGE_WORK + 20
        items += page.items
        pages += 1
        if page.last is None:
            break
        start = page.last + b"\0"
    assert [key for key, _ in items] == [b"~last"]
    assert pages >= MANY // PAGE_WORK


def test_a_reverse_page_that_is_cut_short_loses_nothing() -> None:
    harness = OwnerHarness(tree=HeldTree())
    harness.ask(put(b"!first"))
    tombstones(harness, 0)
    harness.ask(put(b"!first"))
    for number in range(2 * PAGE_WORK):
        harness.send(put(b"a%05d" % number))
        harness.send(delete(b"a%05d" % number))
    harness.settle()
    end, items = None, []
    while True:
        page = harness.ask(scan(b"", end, 10, reverse=True)).result
        items += page.items
        if page.last is None:
            break
        end = page.last
    assert [key for key, _ in items] == [b"!first"]


def test_every_key_is_on_one_page_when_pages_are_cut_short_by_their_work() -> None:
    harness = OwnerHarness(tree=HeldTree())
    names = [b"%06d" % number for number in range(3 * PAGE_WORK)]
    for first in range(0, len(names), 1000):
        harness.ask(batch(*(Set(name, b"1", "") for name in names[first : first + 1000])))
    for name in names[::2]:
        harness.send(delete(name))
    harness.settle()
    start, found = b"", []
    while True:
        page = harness.ask(scan(start, None, 1000)).result
        found += [key for key, _ in page.items]
        if page.last is None:
            break
        start = page.last + b"\0"
    assert found == names[1::2]


def test_a_page_of_a_transaction_that_is_cut_short_has_read_what_it_walked_and_no_more() -> None:
    harness = OwnerHarness(tree=HeldTree())
    tombstones(harness, MANY)
    harness.ask(Open("t"))
    page = harness.ask(scan(b"", None, 1, transaction="t")).result
    assert page.items == []
    assert page.last is not None
    harness.ask(put(page.last + b"\0"))
    assert harness.ask(get(b"other", "t")).error is None
    harness.ask(put(page.last))
    assert harness.ask(Commit("t")).error is not None


def test_a_range_of_a_batch_is_whole_or_refused() -> None:
    harness = OwnerHarness(tree=HeldTree(), settings=Settings(max_request_work=5000))
    tombstones_of = [Set(b"%06d" % one, b"1", "") for one in range(1500)]
    for _ in range(4):
        harness.ask(batch(*tombstones_of))
        harness.ask(batch(*(Delete(one.key) for one in tombstones_of[:1000])))
    assert harness.ask(batch(Range(b"", None, 1))).error is None
    assert isinstance(harness.ask(batch(*[Range(b"", None, 1)] * 10)).error, RequestTooExpensive)


def test_plain_messages_are_not_charged_for_others() -> None:
    harness = OwnerHarness(settings=Settings(max_request_work=1000))
    for _ in range(2000):
        assert harness.ask(Execute(Get(b"a"), AUTOCOMMIT)).error is None
    assert keys(harness) == []


def test_deletions_are_folded_before_ranges_step_over_too_many() -> None:
    harness = OwnerHarness(settings=Settings(memtable_size=1 << 40))
    for first in range(0, 6 * MANY, MANY):
        harness.ask(batch(*(Set(b"%06d" % (first + one), b"1", "") for one in range(MANY))))
        assert harness.ask(batch(DeleteRange(b"", None))).error is None
    assert harness.ask(batch(Range(limit=1))).error is None
