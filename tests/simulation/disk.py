"""A disk that takes its time, that may fail, and that outlives the process.

The rule: what a process has been told to be durable is there after it dies. What was under way then is
there whole or not at all, as the seed says; so is what has failed.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec

from kvactor.core.protocols import Done, ReadDone
from kvactor.core.records import Entry, Revision
from kvactor.storage.memory import MemoryJournal, MemoryTree
from tests.simulation.loop import SimulatedLoop


class DiskProfile(msgspec.Struct):
    """How the disk behaves."""

    #: seconds that a flush or a fold takes, on average
    delay: float = 0.001
    #: how many more of them will succeed before one fails; None: all
    failing_after: int | None = None
    #: bytes that are free
    free: int = 1 << 50


class Disk:
    """What a journal and a tree have in common: work that is done later."""

    def __init__(self, loop: SimulatedLoop, random: Random, profile: DiskProfile) -> None:
        self.loop = loop
        self.profile = profile
        self._random = random
        self.journal = SimulatedJournal(self)
        self.tree = SimulatedTree(self)

    def crash(self) -> None:
        """The process that uses it has died."""
        self.journal.work.crash()
        self.tree.work.crash()
        self.tree.snapshot()
        self.journal.trim(0, sys.maxsize, 0)

    @property
    def busy(self) -> bool:
        """Does somebody wait for it?"""
        return self.journal.work.busy or self.tree.work.busy

    def toss(self) -> bool:
        """Return what nothing but the seed decides."""
        return self._random.random() < 0.5

    def later(self, callback: Callable[[], None]) -> None:
        """Call back when the seed says, if the process that asks is still alive then."""
        self.loop.call_later(self._random.expovariate(1 / self.profile.delay), callback)

    def fails(self) -> bool:
        """Does what is to be done now fail?"""
        left = self.profile.failing_after
        if left is not None:
            self.profile.failing_after = left - 1 if left else None
        return left == 0


class Work:
    """One piece of work at a time: the disk does it later, and tells of it later still."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self._name = name
        self._pending: Callable[[], None] | None = None
        #: from the beginning until whoever asked is told
        self.busy = False

    def begin(self, does: Callable[[], None], done: Done) -> None:
        """Let the disk do something. Raises `RuntimeError` if it has not done the last piece yet."""
        if self._pending is not None:
            raise RuntimeError(f"a {self._name} is under way")
        self._pending = does
        self.busy = True
        self._disk.loop.note(f"{self._name} begins")
        self._disk.later(lambda: self._do(done))

    def _do(self, done: Done) -> None:
        disk = self._disk
        error = OSError(5, "Input/output error") if disk.fails() else None
        if self._pending is not None and (error is None or disk.toss()):
            self._pending()
        self._pending = None
        disk.loop.note(f"{self._name} {'is durable' if error is None else 'fails'}")
        disk.later(lambda: self._tell(done, error))

    def _tell(self, done: Done, error: BaseException | None) -> None:
        self.busy = False
        done(error)

    def crash(self) -> None:
        """Whoever asked has died."""
        if self._disk.toss():
            self.finish()
        self._pending = None
        self.busy = False

    def finish(self) -> None:
        """Whoever asked waits for it, and will not hear of it."""
        if self._pending is not None:
            self._pending()
            self._pending = None
        self.busy = False


class SimulatedJournal(MemoryJournal):
    """A journal on a disk."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk
        #: every revision that was ever made durable, in order, and is never trimmed
        self.all: list[Revision] = []
        self.work = Work(disk, "flush")

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        kept = list(revisions)

        def flush() -> None:
            super(SimulatedJournal, self).append(kept, _nobody)
            self.all += kept

        self.work.begin(flush, done)

    def read(self, after: int, limit: int, done: ReadDone) -> None:
        self._disk.later(lambda: super(SimulatedJournal, self).read(after, limit, done))

    def free_space(self) -> int:
        return self._disk.profile.free

    def close(self) -> None:
        self.work.finish()


class SimulatedTree(MemoryTree):
    """A tree on a disk. What is folded is seen after the next `snapshot`."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk
        self._folded: tuple[list[tuple[bytes, Entry]], int] | None = None
        self.work = Work(disk, "fold")

    def fold(self, changes: Iterable[tuple[bytes, Entry]], applied: int, done: Done) -> None:
        # The owner freezes what it hands over, so it may be read whenever the disk is ready.
        def fold() -> None:
            self._folded = list(changes), applied

        self.work.begin(fold, done)

    def snapshot(self) -> None:
        if self._folded is not None:
            super().fold(*self._folded, _nobody)
            self._folded = None

    def free_space(self) -> int:
        return self._disk.profile.free

    def close(self) -> None:
        self.work.finish()
        self.snapshot()


def _nobody(_: BaseException | None) -> None:
    """Nobody is told."""
