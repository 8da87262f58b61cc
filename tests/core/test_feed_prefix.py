"""Readers that wait for keys with a prefix: who is answered by a flush, and who waits on."""

from typing import Any

import pytest

from kvactor.core import feed
from kvactor.core.messages import Awaited, Changes
from tests.core.builders import batch, catch_up, delete, held_with, put
from tests.core.harness import OwnerHarness, RecordingReply
from tests.core.test_feed import numbers


def wait_for(harness: OwnerHarness, since: int, prefix: bytes) -> tuple[Awaited, RecordingReply[Any]]:
    awaited = Awaited(prefix, since)
    return awaited, harness.ask(Changes(since, 9, wait=True, awaited=awaited))


def test_a_reader_that_waits_for_a_prefix_is_not_answered_by_other_keys_and_passes_them_over() -> None:
    harness = OwnerHarness()
    awaited, waiting = wait_for(harness, 0, b"b/")
    for key in (b"a", b"b", b"b0", b"c"):
        harness.ask(put(key))
        assert not waiting.answered
    assert awaited.since == 4
    harness.ask(put(b"b/1"))
    assert numbers(waiting.result) == [5]


def test_each_reader_that_waits_is_answered_by_its_own_prefix_and_others_wait_on() -> None:
    harness = OwnerHarness()
    waiting = {prefix: wait_for(harness, 0, prefix)[1] for prefix in (b"", b"a", b"ab", b"b", b"\xff")}
    harness.ask(put(b"ab"))
    assert {prefix for prefix, reply in waiting.items() if reply.answered} == {b"", b"a", b"ab"}
    harness.ask(put(b"b"))
    assert waiting[b"b"].answered
    assert numbers(waiting[b"b"].result) == [2]
    assert not waiting[b"\xff"].answered


def test_a_deletion_and_any_key_of_a_flush_answer_a_reader_that_waits_for_a_prefix() -> None:
    harness, journal = held_with(b"k/1")
    awaited, waiting = wait_for(harness, 1, b"k/")
    asked = [harness.ask(put(b"a")), harness.ask(delete(b"k/1")), harness.ask(put(b"z"))]
    catch_up(harness, journal)
    assert all(one.answered for one in asked)
    # The first of them has been flushed alone.
    assert awaited.since == 2
    assert numbers(waiting.result)[:1] == [3]


def test_flushes_of_many_keys_answer_each_reader_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_SOUGHT", 1)
    harness, journal = held_with()
    awaited, waiting = wait_for(harness, 0, b"x")
    harness.ask(put(b"a"))
    catch_up(harness, journal)
    assert not waiting.answered
    assert awaited.since == 1
    harness.ask(batch(put(b"a"), put(b"b")))
    catch_up(harness, journal)
    assert numbers(waiting.result) == [2]


def test_a_flush_that_is_larger_than_the_tail_is_passed_over_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "TAIL_SIZE", 100)
    harness = OwnerHarness()
    awaited, waiting = wait_for(harness, 0, b"b/")
    harness.ask(put(b"a", value=b"." * 1000))
    assert not waiting.answered
    assert awaited.since == 1
    harness.ask(put(b"b/1"))
    assert numbers(waiting.result) == [2]
