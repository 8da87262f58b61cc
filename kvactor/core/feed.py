"""The changes feed: the durable revisions that are kept, in order. Pure and synchronous.

The rule: readers pull, and no revision is kept for any of them. The newest revisions, the tail, are in
memory, once for all readers. The journal reads older ones in the background. So a slow reader
costs nothing, and a reader that falls behind the history gets an error. A reader that waits for keys
with a prefix costs a look at each flush, until there are some.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from kvactor.core.memory import Lease
from kvactor.core.messages import Changes, HistoryRead
from kvactor.core.protocols import Journal
from kvactor.core.records import Revision
from kvactor.core.replies import ReplyTo
from kvactor.errors import DataDamaged, HistoryGone, Overloaded, RecordDamaged, RevisionInFuture

#: How many of the newest revisions are kept in memory, and about how many bytes of them.
TAIL = 1024
TAIL_SIZE = 8 * 1024 * 1024

#: The most revisions in one answer, and about the most bytes of them.
REVISIONS_PER_READ = 100
BYTES_PER_READ = 256 * 1024

#: Readings of the journal that may wait for one another.
MAX_READINGS = 64

#: Readers that have gone away and are kept until the next tick: about so many, or half of all.
SWEEP_AT = 100

#: Keys of a flush that are sorted, so that readers that wait for others wait on: about half a
#: millisecond. More of them answer all readers.
MAX_SOUGHT = 2000

#: What a reader asks for, where its answer goes, and what the answer holds.
Waiting = tuple[Changes, ReplyTo, Lease]


class Feed:
    """The revisions of a journal, for readers that may wait for more."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._tail: deque[tuple[Revision, int]] = deque()
        self._size = 0
        self._waiting: deque[Waiting] = deque()
        #: with how many that wait those that have gone away are forgotten, without a tick
        self._sweep_at = SWEEP_AT
        #: readers of older revisions, by the revision after which they read
        self._reading: dict[int, deque[Waiting]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def publish(self, revisions: Sequence[Revision]) -> Iterator[Waiting]:
        """Take in revisions that are durable now, and return the readers that wait for them; the others
        have passed them over.
        """
        for revision in revisions:
            size = size_of(revision)
            self._tail.append((revision, size))
            self._size += size
        while len(self._tail) > TAIL or self._size > TAIL_SIZE:
            self._size -= self._tail.popleft()[1]
        if not self._waiting or sum(len(one.changes) for one in revisions) > MAX_SOUGHT:
            return self.release()
        keys = sorted(key for one in revisions for key, _ in one.changes)
        return self.release(keys, revisions[-1].number)

    def release(self, keys: Sequence[bytes] | None = None, newest: int = 0) -> Iterator[Waiting]:
        """Yield the readers that wait, or those that wait for one of these keys, which are sorted; the
        others have passed over the revisions up to `newest`. Each is forgotten when the next is asked
        for. If an answer raises, the owner fails, and `abandoned` returns that reader and those behind
        it.
        """
        waiting = self._waiting
        for _ in range(len(waiting)):
            awaited = waiting[0][0].awaited
            if keys is not None and awaited is not None and _lacks(keys, awaited.prefix):
                awaited.since = newest
                waiting.rotate(-1)
            else:
                yield waiting[0]
                waiting.popleft()

    def abandoned(self) -> list[Waiting]:
        """Return and forget every reader: the owner has failed."""
        readers = list(chain(self._waiting, *self._reading.values()))
        self._waiting.clear()
        self._reading.clear()
        return readers

    def wait(self, reader: Waiting) -> None:
        """Keep a reader until there is more. No reader that `release` yields waits again."""
        if len(self._waiting) >= self._sweep_at:
            self.sweep()
            self._sweep_at = max(SWEEP_AT, 2 * len(self._waiting))
        self._waiting.append(reader)

    def sweep(self) -> None:
        """Forget readers that have gone away."""
        self._waiting = deque(one for one in self._waiting if not one[1].done())

    def read(self, since: int, limit: int, newest: int) -> list[Revision] | None:
        """Return the revisions after `since`, up to the durable `newest`, perhaps only the first few.

        None: the journal has to be asked, with `ask_journal`. Raises `RevisionInFuture`, and
        `Overloaded` if it has too much to read already.
        """
        if since > newest:
            raise RevisionInFuture(
                f"There is no revision {since} yet: the newest is {newest}. If the data was restored "
                "from a backup, read everything anew."
            )
        if since == newest:
            return []
        tail = self._tail
        if not tail or tail[0][0].number > since + 1:
            if len(self._reading) >= MAX_READINGS and since not in self._reading:
                raise Overloaded(
                    f"{MAX_READINGS} readings of old revisions are waiting already. Try again later."
                )
            return None
        first = since + 1 - tail[0][0].number
        return _take(islice(tail, first, None), limit)

    # -- revisions older than the tail --

    def ask_journal(self, reader: Waiting, post: Callable[[HistoryRead], None]) -> None:
        """Have the journal read the revisions for a reader in the background, up to a `HistoryRead`.

        Readers that ask for the same revisions share one reading.
        """
        message = reader[0]
        since = message.after
        readers = self._reading.setdefault(since, deque())
        readers.append(reader)
        if len(readers) == 1:

            def done(found: list[Revision], error: BaseException | None) -> None:
                post(HistoryRead(since, found, error))

            self._journal.read(since, message.limit, done)

    @property
    def reading(self) -> bool:
        """Is the journal reading for a reader that still waits?"""
        return any(not reader[1].done() for readers in self._reading.values() for reader in readers)

    def readers(self, since: int) -> Iterator[Waiting]:
        """Yield the readers of the revisions after `since`, and forget each as `release` does."""
        readers = self._reading.get(since, deque())
        while readers:
            yield readers[0]
            readers.popleft()
        self._reading.pop(since, None)

    def history(self, found: HistoryRead, limit: int, newest: int) -> list[Revision]:
        """Return the revisions that the journal has read, at most `limit`, up to the durable `newest`.

        Raises `HistoryGone`, and `RecordDamaged` if the next revision cannot be read.
        """
        revisions = [one for one in found.revisions if one.number <= newest][:limit]
        if not revisions and found.error is not None:
            raise RecordDamaged(
                f"{found.error} Read everything anew, and go on from the revision of that."
            ) from found.error
        if not revisions or revisions[0].number != found.since + 1:
            known = [*revisions[:1], *(revision for revision, _ in islice(self._tail, 1))]
            oldest = min([newest + 1, *(one.number for one in known)])
            raise HistoryGone(
                f"The changes after revision {found.since} are not kept any more; the oldest that is "
                f"kept is revision {oldest}. Read everything anew, and go on from the revision of "
                "that.",
                details={"oldest": oldest},
            )
        return revisions


def _lacks(keys: Sequence[bytes], prefix: bytes) -> bool:
    """Does none of the keys, which are sorted, have the prefix?"""
    at = bisect_left(keys, prefix)
    return at == len(keys) or not keys[at].startswith(prefix)


def take(revisions: Iterable[Revision], limit: int = REVISIONS_PER_READ) -> list[Revision]:
    """Return the first revisions: at most `limit`, and no more once they have `BYTES_PER_READ` bytes.

    Raises `DataDamaged` if the first cannot be read.
    """
    return _take(((revision, size_of(revision)) for revision in revisions), limit)


def _take(revisions: Iterable[tuple[Revision, int]], limit: int) -> list[Revision]:
    taken: list[Revision] = []
    room = BYTES_PER_READ
    try:
        for revision, size in islice(revisions, min(limit, REVISIONS_PER_READ)):
            taken.append(revision)
            room -= size
            if room < 0:
                break
    except DataDamaged:
        if not taken:
            raise
    return taken


def size_of(revision: Revision) -> int:
    """Return the bytes of a revision's keys and records."""
    return sum(len(key) + len(record or b"") for key, record in revision.changes)
