"""What is free goes back to the system."""

import subprocess
import sys

import pytest

from kvactor.cli.heap import return_large_pieces

PROGRAM = """
import sys
from pathlib import Path
from kvactor.cli.heap import return_large_pieces

def anonymous():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

if "fixed" in sys.argv:
    return_large_pieces()
bytearray(16 << 20)  # glibc learns from its end
kept, before = [], anonymous()
large = []
for _ in range(200):
    large.append(bytearray(1 << 20))
    kept.append(bytearray(10_000))
del large
print(anonymous() - before)
"""


def grown(*arguments: str) -> int:
    """How many bytes a process keeps after it has freed 200 MiB that lay between small pieces."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(not return_large_pieces(), reason="not glibc")
def test_large_pieces_go_back_to_the_system_once_they_are_free() -> None:
    assert grown("fixed") < 10 << 20
    # Otherwise this would say nothing.
    assert grown() > 100 << 20
