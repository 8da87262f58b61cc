"""The mutants that break P8 on the disk: its space is bounded, and what frees space goes on."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

_SPACE: Final = "kvactor/core/space.py"
_WRITER: Final = "kvactor/core/writer.py"
_ADMISSION: Final = "kvactor/core/admission.py"
_CORE: Final = ("tests/core/test_space.py",)
_SMALL_DISK: Final = ("tests/core/test_small_disk.py",)
_CONTRACT: Final = ("tests/storage/test_contract.py",)

MUTANTS: Final = (
    Mutant(
        "p8-history-is-not-bounded-by-bytes",
        "The journal keeps as many revisions as `history` says, however large they are.",
        edits=(
            Edit(
                "kvactor/storage/journal.py",
                "LmdbJournal._trim",
                find="taken <= self._size",
                replace="True",
            ),
        ),
        killed_by=_CONTRACT,
    ),
    Mutant(
        "p8-deletions-are-refused-below-the-floor",
        "Deletions need as much space as all other writes. A full disk cannot be emptied.",
        edits=(
            Edit(
                _ADMISSION,
                "Admission.check_write",
                find="self.check_deletable(size, 1)",
                replace="self.check_writable(size, 1, 0)",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-writes-use-the-reserve",
        "A write goes on below the floor, as a deletion does.",
        edits=(
            Edit(
                _SPACE,
                "Space.has_room",
                find="self._room(load) >= 0",
                replace="self.has_reserve(load)",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-deletions-fill-the-disk",
        "Deletions use all that is left. At last a flush fails.",
        edits=(
            Edit(
                _SPACE,
                "Space.has_reserve",
                find="self._spare(self._growth(load), 4) >= 0",
                replace="True",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-scattered-pages-are-as-good-as-others",
        "Free pages are enough, however scattered they are. Large rows fill the disk.",
        edits=(
            Edit(
                _SPACE,
                "FreePages.growth",
                find="self.pieces * largest if largest >= PAGE // 2 else 0",
                replace="0",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-scattered-pages-use-the-reserve",
        "Writes that make the tree grow use what deletions need.",
        edits=(Edit(_SPACE, "Space._room", find="2 if growth.tree else 4", replace="4"),),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-free-pages-do-not-count",
        "Only the disk counts. Once it was full, an emptied store is not written again.",
        edits=(
            Edit(
                _SPACE,
                "Space._left",
                find="self._reading.disk + self._reading.tree.size",
                replace="self._reading.disk",
            ),
        ),
        killed_by=_SMALL_DISK,
    ),
    Mutant(
        "p8-free-pages-of-the-journal-count-for-the-tree",
        "The tree is written as if it could use the journal's pages. It takes the disk instead.",
        edits=(
            Edit(
                _SPACE,
                "Space._left",
                find="self._reading.disk + self._reading.tree.size",
                replace="self._reading.disk + self._reading.tree.size + self._reading.journal.size",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-a-commit-is-checked-key-by-key",
        "Each write of a batch has room by itself. Together they fill the disk.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.commit",
                find="self.admission.check_commit(transaction.overlays[0])",
                replace="pass",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-a-refusal-folds-nothing",
        "What is not folded yet takes the room, and waits until more is written, which is refused.",
        edits=(
            Edit(
                _ADMISSION,
                "Admission._stall_if_room_is_made",
                find="self.wants_fold = True",
                replace="pass",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-a-fold-fills-the-disk",
        "A fold begins though the disk has no room for it, and fails.",
        edits=(
            Edit(
                _WRITER,
                "Writer._fold_if_full",
                find="full and not self._store.folding and self._admission.can_fold()",
                replace="full and not self._store.folding",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-pages-that-a-fold-has-freed-wait-for-the-next-but-one",
        "The fold after a deletion makes the file grow, though nearly all its pages are free.",
        edits=(
            Edit(
                "kvactor/storage/tree.py",
                "LmdbTree._fold",
                find="settle(txn, _NOTHING)",
                replace="pass",
            ),
        ),
        killed_by=_CONTRACT,
    ),
    Mutant(
        "p8-pages-that-were-forgotten-wait-for-the-next-but-one",
        "The append after a trimming makes the file grow, though nearly all its pages are free.",
        edits=(
            Edit(
                "kvactor/storage/journal.py",
                "LmdbJournal._forget",
                find="settle(txn, _NO_ROW)",
                replace="pass",
            ),
        ),
        killed_by=_CONTRACT,
    ),
    Mutant(
        "p8-the-journal-forgets-where-it-ends",
        "The newest revision goes, too, once it is folded. The next start finds an empty journal.",
        edits=(
            Edit(
                "kvactor/storage/journal.py",
                "LmdbJournal._trim",
                find="key == newest",
                replace="False",
            ),
        ),
        killed_by=_CONTRACT,
    ),
    Mutant(
        "p8-trimming-waits-for-an-append",
        "History goes only with an append. When writes are refused, it stays, and they are refused.",
        edits=(Edit(_WRITER, "Writer.tick", find="self._forget()", replace=""),),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-history-is-kept-when-space-is-low",
        "History is kept until the disk is full of it.",
        edits=(Edit(_WRITER, "Writer._may_forget", find="self._space.low", replace="False"),),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-a-large-fold-waits",
        "A fold waits until the memtable is full. Its copies of pages need more than is left.",
        edits=(
            Edit(
                _WRITER,
                "Writer._fold_if_full",
                find="self._admission.fold_is_due",
                replace="False",
            ),
        ),
        killed_by=_CORE,
    ),
)
