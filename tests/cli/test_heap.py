"""What is free goes back to the system."""

import asyncio
import subprocess
import sys

import pytest

from kvactor.cli import heap
from kvactor.cli.heap import return_free_pages, return_large_pieces

PROGRAM = """
import sys
from pathlib import Path
from kvactor.cli.heap import return_free_pages, return_large_pieces

def anonymous():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

size = int(sys.argv[1])
if "fixed" in sys.argv:
    return_large_pieces()
bytearray(16 << 20)  # glibc learns from its end
kept, before = [], anonymous()
large = []
for _ in range((200 << 20) // size):
    large.append(bytearray(size))
    kept.append(bytearray(size // 100))
del large
if "returned" in sys.argv:
    return_free_pages()
print(anonymous() - before)
"""

pytestmark = pytest.mark.skipif(not (return_large_pieces() and return_free_pages()), reason="not glibc")


def grown(*arguments: str) -> int:
    """How many bytes a process keeps after it has freed 200 MiB that lay between small pieces."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def test_large_pieces_go_back_to_the_system_once_they_are_free() -> None:
    assert grown(str(1 << 20), "fixed") < 10 << 20
    # Otherwise this would say nothing.
    assert grown(str(1 << 20)) > 100 << 20


def test_free_pages_between_small_pieces_go_back_to_the_system() -> None:
    assert grown(str(60_000), "fixed", "returned") < 30 << 20
    # Otherwise this would say nothing.
    assert grown(str(60_000), "fixed") > 100 << 20


async def test_free_pages_go_back_again_and_again_while_the_loop_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    returned = asyncio.Semaphore(0)

    def return_pages() -> bool:
        returned.release()
        return True

    monkeypatch.setattr(heap, "PAUSE", 0.0)
    monkeypatch.setattr(heap, "return_free_pages", return_pages)
    heap.keep_small()
    async with asyncio.timeout(10):
        for _ in range(3):
            await returned.acquire()


async def test_a_library_that_cannot_return_pages_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(heap, "PAUSE", 0.0)
    monkeypatch.setattr(heap, "return_free_pages", lambda: asked.append(None))
    heap.keep_small()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(asked) == 1
