"""The changes feed: the durable revisions, in order, from wherever a reader is. Pure and synchronous.

The rule: readers pull, and nothing is kept for any of them. The newest revisions are in memory once
for all; what is older is read from the journal. So a slow reader costs nothing, and one who falls
behind the history is told so.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from kvactor.core.messages import Message
from kvactor.core.protocols import Journal
from kvactor.core.records import Revision
from kvactor.core.replies import ReplyTo
from kvactor.errors import DataDamaged, HistoryGone, RecordDamaged, RevisionInFuture

#: Of the newest revisions, how many are kept in memory, and how many bytes of them, about.
TAIL = 1024
TAIL_SIZE = 8 * 1024 * 1024

#: Of one answer, how many revisions (or as many as have this many bytes) the owner reads at a time.
SLICE = 100
SLICE_SIZE = 256 * 1024

Waiting = tuple[Message[Any], ReplyTo]


class Feed:
    """What has happened, from a journal, for readers who may wait for more."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._tail: deque[tuple[Revision, int]] = deque()
        self._size = 0
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def publish(self, revisions: Sequence[Revision]) -> Iterator[Waiting]:
        """Take in what is durable now, and return who waited for it."""
        for revision in revisions:
            size = _size(revision)
            self._tail.append((revision, size))
            self._size += size
        while len(self._tail) > TAIL or self._size > TAIL_SIZE:
            self._size -= self._tail.popleft()[1]
        return self.release()

    def release(self) -> Iterator[Waiting]:
        """Yield all who wait, and forget each when it is the next one's turn: if one cannot be
        answered, the owner has failed, and it and those behind it have to be told.
        """
        for _ in range(len(self._waiting)):
            yield self._waiting[0]
            self._waiting.popleft()

    def wait(self, message: Message[Any], reply: ReplyTo) -> None:
        """Keep a reader until there is more."""
        self._waiting.append((message, reply))

    def sweep(self) -> None:
        """Forget readers who have gone away."""
        self._waiting = deque(one for one in self._waiting if not one[1].done())

    def read(self, since: int, limit: int, newest: int) -> list[Revision]:
        """Return the revisions after `since`, up to the durable `newest`, perhaps only the first few.

        Raises `HistoryGone`, `RevisionInFuture`, and `RecordDamaged` if the next one cannot be read.
        """
        if since > newest:
            raise RevisionInFuture(
                f"There is no revision {since} yet: the newest is {newest}. If the data was restored "
                "from a backup, read everything anew."
            )
        if since == newest:
            return []
        tail = self._tail
        if tail and tail[0][0].number <= since + 1:
            first = since + 1 - tail[0][0].number
            source = (revision for revision, _ in islice(tail, first, None))
        else:
            source = (one for one in self._journal.replay(since) if one.number <= newest)
        found: list[Revision] = []
        room = SLICE_SIZE
        try:
            for revision in islice(source, min(limit, SLICE)):
                found.append(revision)
                room -= _size(revision)
                if room < 0:
                    break
        except DataDamaged as error:
            if not found:
                raise RecordDamaged(
                    f"{error} Read everything anew, and go on from the revision of that."
                ) from error
        if not found or found[0].number != since + 1:
            oldest = min(
                found[0].number if found else newest + 1, tail[0][0].number if tail else newest + 1
            )
            raise HistoryGone(
                f"The changes after revision {since} are not kept any more; the oldest that is kept is "
                f"revision {oldest}. Read everything anew, and go on from the revision of that.",
                details={"oldest": oldest},
            )
        return found


def _size(revision: Revision) -> int:
    return sum(len(key) + len(record or b"") for key, record in revision.changes)
