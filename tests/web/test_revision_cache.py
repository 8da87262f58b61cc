"""Revisions are encoded once, in steps, and what followers hold of them counts."""

import asyncio
import gc
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from kvactor.api.changes import EncodedRevision, Piece
from kvactor.core.memory import MemoryAccount
from kvactor.core.records import Revision, encode
from kvactor.web.revision_cache import CHANGES_AT_ONCE, RevisionCache
from kvactor.web.steps import Turnstile, join


class Turns:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._next()

    def _next(self) -> None:
        self.count += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


@pytest.fixture
async def turns() -> Any:
    turns = Turns()
    yield turns
    turns.stop()


@pytest.fixture
def account() -> MemoryAccount:
    return MemoryAccount(1 << 30)


@pytest.fixture
def cache(account: MemoryAccount) -> RevisionCache:
    return RevisionCache(account, Turnstile())


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is to be given back at once must not wait for the garbage collector."""
    gc.disable()
    yield
    gc.enable()


def large(number: int, values: int = 7) -> Revision:
    """Return a revision of so many values of a megabyte."""
    keys = [b"k%d-%d" % (number, index) for index in range(values)]
    return Revision(
        number, 0, tuple((key, encode(key, b"x" * 1_000_000, "text/plain")) for key in keys)
    )


async def cut(cache: RevisionCache, revision: Revision, prefix: bytes = b"") -> list[Piece]:
    """Return a follower's part of one revision."""
    return [piece async for _, pieces in cache.cut([revision], prefix) for piece in pieces]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the revisions that are encoded."""
    begun: list[int] = []
    steps = EncodedRevision.steps

    def counted(revision: Revision) -> Generator[None, None, EncodedRevision]:
        begun.append(revision.number)
        return steps(revision)

    monkeypatch.setattr(EncodedRevision, "steps", counted)
    return begun


@pytest.mark.usefixtures("no_collector")
async def test_text_that_has_left_the_cache_counts_as_long_as_a_follower_has_a_view_of_it(
    account: MemoryAccount, cache: RevisionCache
) -> None:
    held = [await cut(cache, large(number)) for number in range(1, 11)]
    sizes = [sum(map(len, pieces)) for pieces in held]
    assert account.used >= sum(sizes[:-1])
    last_view = held[3][1][-1000:]
    del held[:3]
    assert account.used < sum(sizes[2:])
    held.clear()
    assert sizes[3] <= account.used < 2 * sizes[3]
    del last_view
    assert account.used == 0


async def test_a_revision_that_changes_no_such_key_is_not_encoded(
    cache: RevisionCache, begun: list[int]
) -> None:
    for number in (1, 2, 1, 2):
        assert await cut(cache, large(number), b"none") == []
    assert begun == []
    assert await cut(cache, large(1), b"k1-3")
    assert begun == [1]


async def test_a_revision_of_few_large_values_is_encoded_once_for_all_that_want_it(
    cache: RevisionCache, begun: list[int]
) -> None:
    one = large(1)
    found = await asyncio.gather(*(cut(cache, one, b"k1-%d" % number) for number in range(7)))
    assert [len(pieces) for pieces in found] == [3] * 7
    assert begun == [1]


async def test_small_revisions_in_a_row_are_encoded_in_steps(
    cache: RevisionCache, turns: Turns
) -> None:
    changes = tuple((b"k%03d" % number, None) for number in range(CHANGES_AT_ONCE))
    revisions = [Revision(number, 0, changes) for number in range(100)]
    for prefix, count in ((b"none", 0), (b"k", 100)):
        before = turns.count
        assert len([number async for number, _ in cache.cut(revisions, prefix)]) == count
        assert turns.count - before >= 9


async def test_of_all_revisions_that_are_encoded_only_one_takes_a_step_in_a_turn(
    cache: RevisionCache, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: list[int] = []
    steps = EncodedRevision.steps

    def counted(revision: Revision) -> Generator[None, None, EncodedRevision]:
        stepped.append(turns.count)
        made = steps(revision)
        for _ in range(2):
            next(made)
            yield
            stepped.append(turns.count)
        return (yield from made)

    monkeypatch.setattr(EncodedRevision, "steps", counted)
    await asyncio.gather(*(cut(cache, large(number, 3)) for number in range(10)))
    assert len(stepped) == 30
    assert len(set(stepped)) == 30


def test_pieces_are_joined_in_steps() -> None:
    pieces: list[Piece] = [b"a" * 10, memoryview(b"b" * 31), b"", b"c"]
    steps = join(pieces, 10)
    for _ in range(4):
        next(steps)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == b"a" * 10 + b"b" * 31 + b"c"
