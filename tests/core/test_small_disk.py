"""A small disk is filled and emptied again and again: no flush fails for want of space, deletions go
on, and an emptied store is written again.
"""

from random import Random
from typing import Any

import pytest

from kvactor.core.messages import Message
from kvactor.core.operations import DeleteRange
from kvactor.errors import KeyNotFound, StorageFull, WritesStalled
from kvactor.settings import Settings
from tests.core.builders import batch, delete, put
from tests.core.harness import OwnerHarness
from tests.core.small_disk import SmallDisk

MB = 1_000_000
FLOOR = 4 * MB
SIZES = [20_000, 100_000, 700_000]


def on(disk: SmallDisk, memtable_size: int = MB) -> OwnerHarness:
    settings = Settings(min_free_space=FLOOR, memtable_size=memtable_size)
    return OwnerHarness(disk.journal, disk.tree, settings)


def ask(harness: OwnerHarness, message: Message[Any]) -> BaseException | None:
    """Ask, and again while a fold makes room; return the error."""
    for _ in range(5):
        error = harness.ask(message).error
        if not isinstance(error, WritesStalled):
            return error
        harness.tick()
    raise AssertionError("no fold makes room")


def write(harness: OwnerHarness, key: bytes, size: int) -> bool:
    """Write a key; return whether it was accepted."""
    error = ask(harness, put(key, bytes(size)))
    assert error is None or isinstance(error, StorageFull)
    return error is None


def remove(harness: OwnerHarness, key: bytes) -> None:
    """Delete a key if it exists."""
    error = ask(harness, delete(key))
    assert error is None or isinstance(error, KeyNotFound)


def fill(harness: OwnerHarness, size: int) -> int:
    written = 0
    while write(harness, b"%06d" % written, size):
        written += 1
    return written


def empty(harness: OwnerHarness) -> None:
    assert ask(harness, batch(DeleteRange(b"", None))) is None
    for _ in range(2):
        harness.tick()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [2.5, 4])
def test_p8_a_disk_that_was_filled_and_emptied_is_filled_again(ratio: float, size: int) -> None:
    harness = on(SmallDisk(24 * MB), int(FLOOR / ratio))
    written = []
    for _ in range(5):
        written.append(fill(harness, size))
        empty(harness)
    assert min(written) >= max(written) * 3 // 4 > 8 * MB // size * 3 // 4


@pytest.mark.parametrize("size", SIZES)
def test_p8_an_emptied_store_is_written_again_while_others_use_the_disk(size: int) -> None:
    disk = SmallDisk(24 * MB)
    harness = on(disk)
    fill(harness, size)
    empty(harness)
    # All but the eighth of the floor that nothing uses.
    disk.foreign = disk.free - FLOOR // 8
    harness.tick()
    for _ in range(4):
        assert fill(harness, size) > 0
        empty(harness)
    disk.foreign = 0
    harness.tick()
    assert fill(harness, size) > 8 * MB // size * 3 // 4


@pytest.mark.parametrize("seed", range(5))
def test_p8_whatever_is_written_the_disk_is_never_full_and_can_be_emptied(seed: int) -> None:
    """Sizes are mixed, so that free pages lie scattered."""
    random, disk = Random(seed), SmallDisk(24 * MB, seed)
    harness = on(disk)
    keys = [b"%03d" % number for number in range(400)]
    for _ in range(4):
        for _ in range(400):
            key = random.choice(keys)
            if random.random() < 0.3:
                remove(harness, key)
            else:
                write(harness, key, random.choice([10, 5000, *SIZES]))
        for key in keys:
            remove(harness, key)
        for _ in range(2):
            harness.tick()
        assert disk.free >= FLOOR // 4
        assert all(write(harness, b"again", size) for size in SIZES)
