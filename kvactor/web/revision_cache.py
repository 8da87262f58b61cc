"""The newest revisions of the changes feed as text, encoded once for all followers.

The rule: encodings hold the loop no longer than one step of one of them, however many go on. The cache
has a bound of its own. Other text of more than `SMALL` bytes counts in the account of memory, from
before it is made until no follower has a view of it.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence

from kvactor.api.changes import CHANGES_PER_STEP, EncodedRevision, Piece
from kvactor.core.feed import TAIL, TAIL_SIZE, size_of
from kvactor.core.memory import SMALL, Lease, MemoryAccount
from kvactor.core.records import Revision
from kvactor.web.steps import Turnstile, at_once

#: Changes of a revision of up to `SMALL` bytes that is encoded at once: about 0.1 milliseconds.
CHANGES_AT_ONCE = 30


class RevisionCache:
    """Keeps as many revisions as the feed itself: `TAIL` of them at most, and `TAIL_SIZE` bytes, or one
    that is larger.
    """

    def __init__(self, account: MemoryAccount, turnstile: Turnstile) -> None:
        self._account = account
        self._turnstile = turnstile
        self._encoded: dict[int, EncodedRevision] = {}
        self._size = 0
        self._encoding: dict[int, asyncio.Future[EncodedRevision]] = {}

    async def cut(
        self, revisions: Sequence[Revision], prefix: bytes
    ) -> AsyncIterator[tuple[int, list[Piece]]]:
        """Yield the number and the text of revisions; with a prefix, of those that change such keys.

        Raises `Overloaded` if there is no memory to encode one.
        """
        room = CHANGES_PER_STEP
        for revision in revisions:
            encoded = self._encoded.get(revision.number)
            if encoded is None:
                if room <= 0:
                    room = CHANGES_PER_STEP
                    await self._turnstile.pass_through()
                room -= len(revision.changes)
                if prefix and _lacks(revision, prefix):
                    continue
                encoded = self._encoded.get(revision.number) or await self._encode(revision)
            if pieces := encoded.cut(prefix):
                yield revision.number, pieces

    async def _encode(self, revision: Revision) -> EncodedRevision:
        task = self._encoding.get(revision.number)
        if task is None:
            size = size_of(revision)
            if len(revision.changes) <= CHANGES_AT_ONCE and size <= SMALL:
                return self._keep(at_once(EncodedRevision.steps(revision)))
            task = asyncio.ensure_future(self._take_steps(revision, size))
            self._encoding[revision.number] = task
            task.add_done_callback(lambda done: self._encoded_now(revision.number, done))
        return await asyncio.shield(task)

    async def _take_steps(self, revision: Revision, size: int) -> EncodedRevision:
        lease = Lease(self._account, self._account.nobody)
        if size > SMALL:
            lease.acquire(size)
        try:
            return await self._turnstile.take(EncodedRevision.steps(revision))
        finally:
            lease.close()

    def _encoded_now(self, number: int, task: "asyncio.Future[EncodedRevision]") -> None:
        del self._encoding[number]
        if not task.cancelled() and task.exception() is None:
            self._keep(task.result())

    def _keep(self, one: EncodedRevision) -> EncodedRevision:
        encoded = self._encoded
        encoded[one.number] = one
        self._size += one.size
        while len(encoded) > 1 and (len(encoded) > TAIL or self._size > TAIL_SIZE):
            self._drop(encoded.pop(next(iter(encoded))))
        return one

    def _drop(self, one: EncodedRevision) -> None:
        self._size -= one.size
        if one.size > SMALL:
            # Until no follower has a view of its text.
            lease = Lease(self._account, self._account.nobody)
            lease.acquire(one.size, refuse=False)
            weakref.finalize(one.text, lease.close)


def _lacks(revision: Revision, prefix: bytes) -> bool:
    """Does a revision change no such key? With many changes it is encoded to find out, once for all
    prefixes.
    """
    changes = revision.changes
    return len(changes) <= CHANGES_PER_STEP and not any(key.startswith(prefix) for key, _ in changes)
