"""The mutants that break P8 on the disk: its space is bounded, and what frees space goes on."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

_SPACE: Final = "kvactor/core/space.py"
_WRITER: Final = "kvactor/core/writer.py"
_CORE: Final = ("tests/core/test_space.py",)
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
                "kvactor/core/admission.py",
                "Admission.check_write",
                find="self.check_deletable(1)",
                replace="self.check_writable()",
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
                find="self.left - in_flight >= self._floor",
                replace="self.left - in_flight >= self._floor // 4",
            ),
        ),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-deletions-fill-the-disk",
        "Deletions use all that is left. At last a flush fails.",
        edits=(Edit(_SPACE, "Space.has_reserve", find="self._floor // 4", replace="0"),),
        killed_by=_CORE,
    ),
    Mutant(
        "p8-free-pages-count-without-a-bound",
        "Free pages count like free space, however scattered they are. Large rows fill the disk.",
        edits=(Edit(_SPACE, "Space.note", find="self._floor // 4", replace="1 << 60"),),
        killed_by=_CORE,
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
                find="self._space.fold_is_large(len(memtable))",
                replace="False",
            ),
        ),
        killed_by=_CORE,
    ),
)
