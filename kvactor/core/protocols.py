"""The two protocols of durable storage. `storage/` implements them.

The journal is the ordered log of revisions, and the only thing that a write waits for. The tree is
an ordered map from key to record into which the journal is folded now and then: a cache of the log
that can be searched. Nothing in the core may assume that the journal is local.

`append`, `forget`, `fold` and `read` return at once, do their work elsewhere (or on the spot, without a
disk), and then call `done` from any thread, with the error, or None. At most one of each is under way
at a time, but for readings. The owner alone calls the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from kvactor.core.records import Entry, Missing, Revision
from kvactor.core.space import FreePages
from kvactor.core.work import Work

Done = Callable[[BaseException | None], None]
#: Takes whether there is more to forget.
ForgetDone = Callable[[bool, BaseException | None], None]
#: Takes the revisions read; the error is `DataDamaged` if the first revision is damaged.
ReadDone = Callable[[list[Revision], BaseException | None], None]


class StorageFailed(Exception):
    """The journal or the tree has failed.

    What it was to write may be durable or not, so the process must end (promise P10).
    """


class Journal(Protocol):
    """The ordered log of revisions."""

    def append(self, revisions: Sequence[Revision], done: Done) -> None:
        """Make revisions durable, all or none, in one commit; they follow the head without a gap."""

    def replay(self, after: int) -> Iterator[Revision]:
        """Yield the revisions that are kept and are newer than `after`, in order.

        Raises `DataDamaged`.
        """

    def read(self, after: int, limit: int, done: ReadDone) -> None:
        """Read the first revisions newer than `after`: at most `limit`, and no more than one answer
        has (`feed.take`).
        """

    def head(self) -> int:
        """Return the newest revision's number; 0 in a new journal."""

    def trim(self, below: int, size: int, folded: int) -> None:
        """Allow revisions to be forgotten, with the next appends: those older than `below`, and the
        oldest while all take more than `size` bytes. None newer than `folded` is, nor
        the newest: it tells where the journal ends.
        """

    def forget(self, done: ForgetDone) -> None:
        """Forget some of what `trim` allows, without an append: in a commit of its own."""

    def free_space(self) -> int:
        """Return how many bytes the file may still grow, on the disk and in the map.

        Any thread may call it.

        Raises `OSError` if the disk does not say.
        """

    def reusable(self) -> FreePages:
        """Return the free pages of the file, about: the next commit may use them, and does before the
        file grows. They may be too scattered for a large row. Any thread may call it.
        """

    def close(self) -> None:
        """Wait for operations under way, and release all resources."""


class Tree(Protocol):
    """The ordered map that the journal is folded into. Reads see the state of the last `snapshot`."""

    @property
    def applied(self) -> int:
        """The revision folded up to, as of the snapshot."""

    @property
    def keys(self) -> int:
        """How many keys there are, as of the snapshot."""

    def get(self, key: bytes, work: Work) -> bytes | Missing:
        """Return a key's record. Charges its bytes before they are read. Raises `RecordDamaged`."""

    def head(self, key: bytes, work: Work) -> bytes | Missing:
        """Return a key's record up to its value, which is neither read nor charged (a record of format
        1 is). Raises `RecordDamaged`.
        """

    def range(
        self, start: bytes, end: bytes | None, reverse: bool, values: bool, work: Work
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and records from `start` up to but not including `end`; without `values`, the
        records end before the value. Charges each step. Raises `RecordDamaged`.
        """

    def expired(self, after: tuple[int, bytes], now: int) -> Iterator[tuple[int, bytes]]:
        """Yield (expiry, key) of the records that expire by `now`, soonest first, those behind
        `after` only.
        """

    def fold(self, changes: Iterable[tuple[bytes, Entry]], applied: int, done: Done) -> None:
        """Apply changes, in key order, and note their last revision as `applied`, in one commit."""

    def snapshot(self) -> None:
        """Read from the state that the last fold left."""

    def free_space(self) -> int:
        """See `Journal`."""

    def reusable(self) -> FreePages:
        """See `Journal`."""

    def close(self) -> None:
        """Wait for operations under way, and release all resources."""
