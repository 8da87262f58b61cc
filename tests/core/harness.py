"""Drives an owner without a loop, a clock or a disk: every step is a line of the test."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import Answer, Message, Tick
from kvactor.core.owner import Owner
from kvactor.core.protocols import Done, Journal, ReadDone, Tree
from kvactor.core.records import Revision
from kvactor.settings import Settings
from kvactor.storage.memory import MemoryJournal, MemoryTree

R = TypeVar("R")


class RecordingReply(Generic[R]):
    """A reply that remembers; raises when it is answered twice."""

    def __init__(self, heard: Callable[[], None] = lambda: None) -> None:
        self._outcome: Answer[R] | BaseException | None = None
        self._heard = heard
        self.cancelled = False

    def set_result(self, answer: Answer[R], /) -> None:
        self._set(answer)

    def set_exception(self, error: BaseException, /) -> None:
        self._set(error)

    def _set(self, outcome: Answer[R] | BaseException) -> None:
        if self.done():
            raise RuntimeError("answered twice")
        self._outcome = outcome
        self._heard()

    def done(self) -> bool:
        return self.cancelled or self._outcome is not None

    @property
    def answered(self) -> bool:
        return self._outcome is not None

    @property
    def error(self) -> BaseException | None:
        return self._outcome if isinstance(self._outcome, BaseException) else None

    @property
    def revision(self) -> int:
        return self._number("revision")

    @property
    def time(self) -> int:
        return self._number("time")

    def _number(self, name: str) -> int:
        if self._outcome is None:
            raise RuntimeError("not answered yet")
        number = getattr(self._outcome, name)
        if not isinstance(number, int):
            raise RuntimeError(f"no {name} in {self._outcome!r}")
        return number

    @property
    def result(self) -> R:
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if self._outcome is None:
            raise RuntimeError("not answered yet")
        return self._outcome.result


class HeldJournal(MemoryJournal):
    """A journal whose disk waits: an append is durable, and a read ends, only when the test says so."""

    def __init__(self, *, holding: bool = True) -> None:
        super().__init__()
        self.holding = holding
        #: how many revisions came with each append
        self.flushes: list[int] = []
        self.pending: list[tuple[Sequence[Revision], Done]] = []
        self.holding_reads = False
        self.reads: list[tuple[int, int, ReadDone]] = []

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        self.flushes.append(len(revisions))
        if self.holding:
            self.pending.append((revisions, done))
        else:
            super().append(revisions, done)

    def release(self) -> None:
        """Let the append that is under way, if one is, reach the disk."""
        if self.pending:
            super().append(*self.pending.pop(0))

    def break_down(self, error: BaseException) -> None:
        """Let the append that is under way fail."""
        self.pending.pop(0)[1](error)

    def read(self, after: int, limit: int, done: ReadDone) -> None:
        if self.holding_reads:
            self.reads.append((after, limit, done))
        else:
            super().read(after, limit, done)

    def release_read(self, error: BaseException | None = None) -> None:
        """Let the oldest read that is under way end, or fail."""
        after, limit, done = self.reads.pop(0)
        if error is None:
            super().read(after, limit, done)
        else:
            done([], error)


class SmallJournal(MemoryJournal):
    """A journal on a disk with `free` bytes."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.free = free

    def free_space(self) -> int:
        return self.free


class HeldTree(MemoryTree):
    """A tree whose folds wait."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = True
        self.pending: list[tuple[Any, int, Done]] = []

    def fold(self, changes: Any, applied: int, done: Done) -> None:
        if self.holding:
            self.pending.append((changes, applied, done))
        else:
            super().fold(changes, applied, done)

    def release(self) -> None:
        super().fold(*self.pending.pop(0))


class OwnerHarness:
    """An owner, its news, and the clock."""

    def __init__(
        self,
        journal: Journal | None = None,
        tree: Tree | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.journal = journal or MemoryJournal()
        self.tree = tree or MemoryTree()
        self.now = 1_000_000
        self.news: list[Message[Any]] = []
        self.owner = Owner(self.journal, self.tree, settings or Settings(), self.news.append)

    def send(self, message: Message[R]) -> RecordingReply[R]:
        """One drain with one message; the news stays where it is."""
        reply: RecordingReply[R] = RecordingReply()
        self.owner.drain(self.now, [(message, reply, UNCOUNTED)])
        return reply

    def settle(self) -> None:
        """Give the owner its news until there is none."""
        while self.news:
            self.owner.drain(self.now, [(self.news.pop(0), None, UNCOUNTED)])

    def ask(self, message: Message[R]) -> RecordingReply[R]:
        """Send, and settle."""
        reply = self.send(message)
        self.settle()
        return reply

    def tick(self) -> None:
        """Read the free space, and settle."""
        self.tell(Tick(self.owner.free_space()))

    def tell(self, message: Message[None]) -> None:
        """Give the owner news of the test's own, and settle."""
        self.owner.drain(self.now, [(message, None, UNCOUNTED)])
        self.settle()
