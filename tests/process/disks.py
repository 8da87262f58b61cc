"""File systems of a test's own, where they may be mounted, and a power cut on one of them."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

#: EXT4_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH: from then on nothing is written, ext4's own log
#: included.
_SHUTDOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = 2


class Disk:
    """A file system that is mounted on the directory `path` by the command `mount`."""

    def __init__(self, path: Path, *mount: str) -> None:
        self.path = path
        self._mount = ("mount", *mount, str(path))

    def mount(self) -> None:
        """Mount it."""
        _run(*self._mount)

    def unmount(self) -> None:
        """Unmount it. Nobody may use it any more."""
        _run("umount", str(self.path))

    def cut_power(self) -> None:
        """Lose whatever is not on the disk yet, as the next mount will show. (Of ext4 only.)"""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(folder)


@contextmanager
def ext4(folder: Path, size: int) -> Iterator[Disk]:
    """Mount a new ext4 of `size` bytes, kept in a file. Skips the test where that cannot be done."""
    image = folder / "disk.img"
    image.touch()
    os.truncate(image, size)
    _try("mkfs.ext4", "-q", "-F", str(image))
    # Without `commit`, ext4 would write what nobody has synced after five seconds.
    with _mounted(folder / "disk", "-o", "loop,commit=600", str(image)) as disk:
        yield disk
    image.unlink()


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Disk]:
    """Mount a new tmpfs of `size` bytes. Skips the test where that cannot be done."""
    with _mounted(folder / "disk", "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as disk:
        yield disk


@contextmanager
def _mounted(path: Path, *mount: str) -> Iterator[Disk]:
    path.mkdir()
    _try("mount", *mount, str(path))
    disk = Disk(path, *mount)
    try:
        yield disk
    finally:
        if path.is_mount():
            # Lazily: after a failure a server may be about to be ended that still uses it.
            _run("umount", "--lazy", str(path))


def _try(*command: str) -> None:
    try:
        _run(*command)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{command[0]} cannot be used: {error.stderr.strip()}")


def _run(*command: str) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
