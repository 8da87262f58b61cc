"""The writer: what the owner hands to the journal and to the tree, and when.

The rule: one flush, one fold and one trimming are under way at a time, each ends with a message, and a
failed one ends the process (P10).

    flush    staged revisions go to the journal as soon as it is free
    fold     the memtable goes to the tree once it is full, has many tombstones, or keeps space from
             writes, or before a stop
    forget   the journal trims history that no append has trimmed, with a tick, or when space is low
"""

from collections.abc import Callable, Sequence
from typing import Any

from kvactor.core.admission import Admission
from kvactor.core.messages import Flushed, Folded, Forgot, Message
from kvactor.core.protocols import Journal, StorageFailed, Tree
from kvactor.core.records import Revision
from kvactor.core.space import FreeSpace
from kvactor.core.store import Store
from kvactor.settings import Settings

#: How often a memtable may be overwritten before it is folded. This bounds the journal.
MAX_REWRITES = 8

#: How many deletions a memtable takes before it is folded: ranges step over each until then.
MAX_TOMBSTONES = 10_000

#: There is more to forget than was forgotten.
_FORGOTTEN_NOTHING = (0, 0, 0)


class Writer:
    """Writes `store` to `journal` and `tree`, as `admission` has space. `post` may be called from any
    thread.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        tree: Tree,
        admission: Admission,
        settings: Settings,
        post: Callable[[Message[Any]], None],
    ) -> None:
        self._store = store
        self._journal = journal
        self._tree = tree
        self._admission = admission
        self._space = admission.space
        self._settings = settings
        self._post = post
        self._stopping = False
        #: what it was last allowed to forget, and has forgotten
        self._forgotten = _FORGOTTEN_NOTHING

    @property
    def idle(self) -> bool:
        """Is everything flushed and folded?"""
        store = self._store
        return not (store.pending or store.folding or store.memtable or self._admission.forgetting)

    @property
    def folds_lag(self) -> bool:
        """Is the memtable full again before the last one is folded?"""
        return self._store.folding and self._store.memtable.size >= self._settings.memtable_size

    def stop(self) -> None:
        """Forget no more: a stop does not wait for that."""
        self._stopping = True

    def write(self, *, last: bool) -> None:
        """Flush what is staged if no flush is under way; fold all if it is the `last` time."""
        store = self._store
        if store.staging and not store.flushing:
            self._flush()
        if last and store.memtable and not store.folding:
            self._fold()
        elif self._admission.wants_fold:
            self._fold_if_full()

    def tick(self, reading: FreeSpace | None) -> None:
        """Take in a reading of the free space, if there is one, and free more if it is low."""
        self._note_space(reading)
        self._admission.tick()
        self._forget()
        self._admission.wants_fold = self._space.low
        self._fold_if_full()

    # -- flushes --

    def _flush(self) -> None:
        post, store, space = self._post, self._store, self._space
        space.take(store.staging)
        revisions = store.seal()
        head = revisions[-1].number
        self._journal.trim(*self._may_forget(head))

        if self._admission.plenty:
            self._journal.append(revisions, lambda error: post(Flushed(head, error)))
        else:
            self._journal.append(
                revisions, lambda error: post(Flushed(head, error, self._read_space(error)))
            )

    def flushed(self, message: Flushed) -> Sequence[Revision]:
        """Return the revisions that are durable now. Raises `StorageFailed`."""
        if message.error is not None:
            raise StorageFailed(
                f"the journal could not flush up to revision {message.revision}"
            ) from message.error
        revisions = self._store.apply()
        if message.free_space is not None:
            self._note_space(message.free_space)
        if self._space.low:
            self._forget()
        if not self._store.folding:
            self._fold_if_full()
        return revisions

    # -- folds --

    def _fold_if_full(self) -> None:
        limit, memtable = self._settings.memtable_size, self._store.memtable
        rewrites = 1 if self._space.low else MAX_REWRITES
        full = (
            memtable.size >= limit
            or memtable.grown >= limit * rewrites
            or memtable.tombstones >= MAX_TOMBSTONES
            or self._admission.fold_is_due
        )
        if full and not self._store.folding and self._admission.can_fold():
            self._fold()

    def _fold(self) -> None:
        post = self._post
        self._admission.wants_fold = False
        self._tree.fold(
            self._store.freeze(),
            self._store.revision,
            lambda error: post(Folded(error, self._read_space(error))),
        )

    def folded(self, message: Folded) -> None:
        """Take note of the end of a fold. Raises `StorageFailed`."""
        if message.error is not None:
            raise StorageFailed("the tree could not fold the journal in") from message.error
        self._store.drop_frozen()
        self._note_space(message.free_space)
        if self._space.low:
            self._forget()
        self._fold_if_full()

    # -- history --

    def _may_forget(self, head: int) -> tuple[int, int, int]:
        """Return what the journal may forget, as `trim` takes it; if space is low, all folded ones."""
        folded, settings = self._store.folded, self._settings
        if self._space.low:
            return 0, 0, folded
        return max(0, head - settings.history) + 1, settings.history_size, folded

    def _forget(self) -> None:
        """Let the journal forget what no append has."""
        admission = self._admission
        if admission.forgetting or self._stopping or not admission.has_reserve():
            return
        may_forget = self._may_forget(self._store.revision)
        if may_forget != self._forgotten:
            admission.forgetting, self._forgotten, post = True, may_forget, self._post
            self._journal.trim(*may_forget)
            self._journal.forget(lambda more, error: post(Forgot(more, error, self._read_space(error))))

    def forgot(self, message: Forgot) -> None:
        """Take note of what was forgotten, and go on if there is more. Raises `StorageFailed`."""
        if message.error is not None:
            raise StorageFailed("the journal could not forget history") from message.error
        self._admission.forgetting = False
        self._note_space(message.free_space)
        if message.more:
            self._forgotten = _FORGOTTEN_NOTHING
            self._forget()

    # -- free space --

    def _read_space(self, error: BaseException | None) -> FreeSpace | None:
        """Read the free space, unless there was an error: then nothing more is asked of the disk."""
        if error is not None:
            return None
        try:
            return read_space(self._journal, self._tree)
        except Exception:  # noqa: BLE001 -- whoever waits for the flush or the fold has to hear of it
            return None  # the next tick tells of it

    def _note_space(self, reading: FreeSpace | None) -> None:
        if reading is not None:
            self._space.note(reading, self._store.flushing_size)


def read_space(journal: Journal, tree: Tree) -> FreeSpace:
    """Read the free space. Any thread may call it. Raises `OSError` if the disk does not say."""
    disk = min(journal.free_space(), tree.free_space())
    return FreeSpace(disk, journal.reusable(), tree.reusable())
