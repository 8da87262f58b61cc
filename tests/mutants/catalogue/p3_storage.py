"""The mutants that break P3 in storage: the journal, the tree or the disk loses what is
acknowledged.
"""

from typing import Final

from tests.mutants.catalogue.killers import KILLS, POWER_CUTS, SIMULATION
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p3-a-fold-counts-newer-revisions-as-folded",
        "When a fold ends, the newest revision counts as folded instead of the last one in the fold. "
        "The journal is trimmed too far.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store.drop_frozen",
                find="self.folded = self._folding",
                replace="self.folded = self.revision",
            ),
        ),
        killed_by=(
            "tests/core/test_store.py",
            (
                "tests/process/test_kill.py::"
                "test_a_kill_during_a_fold_loses_nothing_acknowledged_and_keeps_nothing_uncommitted"
            ),
            SIMULATION,
        ),
    ),
    Mutant(
        "p3-a-fold-is-noted-before-it-is-done",
        "The tree notes how far it is folded in a commit of its own, before the fold. A kill between "
        "the two loses a memtable.",
        edits=(
            Edit(
                "kvactor/storage/tree.py",
                "LmdbTree._fold",
                find="""
                    with self._env.begin(self._records, write=True) as txn:
                        self._write(txn, changes, applied)
                """,
                replace="""
                    with self._env.begin(self._meta, write=True) as txn:
                        txn.put(_APPLIED, _NUMBER.pack(applied))
                    with self._env.begin(self._records, write=True) as txn:
                        self._write(txn, changes, applied)
                """,
            ),
        ),
        killed_by=(KILLS,),
    ),
    Mutant(
        "p3-folded-further-than-durable",
        "The tree notes the newest staged revision as folded instead of the newest durable one. After "
        "a kill, recovery skips what the journal was flushing.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer._fold",
                find="self._store.revision",
                replace="self._store.head",
            ),
        ),
        killed_by=(SIMULATION, KILLS),
    ),
    Mutant(
        "p3-lmdb-does-not-sync",
        "LMDB lets the kernel decide when a commit goes to the disk. A kill does not show it, because "
        "the kernel lives on; a power cut does.",
        edits=(
            Edit(
                "kvactor/storage/environment.py",
                "open_environment",
                find="""
                    lmdb.open(
                        str(path), map_size, mode=FILE_MODE, max_dbs=max_dbs, max_spare_txns=2,
                        lib_version=0,
                    )
                """,
                replace="""
                    lmdb.open(
                        str(path), map_size, mode=FILE_MODE, max_dbs=max_dbs, max_spare_txns=2,
                        lib_version=0, sync=False,
                    )
                """,
            ),
        ),
        killed_by=(POWER_CUTS, "tests/storage/test_lmdb.py::test_p3_a_commit_is_synced_whole"),
    ),
    Mutant(
        "p3-new-directories-are-not-synced",
        "The folders of a new data directory are not synced. After a power cut, no folder names the "
        "files with the first writes.",
        edits=(
            Edit(
                "kvactor/storage/directory.py",
                "_open",
                find='(path / "journal", path / "tree", path, path.absolute().parent)',
                replace='(path / "journal",)',
            ),
        ),
        killed_by=("tests/storage/test_lmdb.py::test_p3_every_folder_that_names_a_new_one_is_synced",),
    ),
    Mutant(
        "p3-the-last-row-is-not-replayed",
        "Recovery stops one revision before the end of the journal.",
        edits=(
            Edit(
                "kvactor/storage/journal.py",
                "LmdbJournal.replay",
                find="range(first, decode_revision_number(cursor.key()) + 1)",
                replace="range(first, decode_revision_number(cursor.key()))",
            ),
        ),
        killed_by=(
            (
                "tests/process/test_kill.py::"
                "test_no_acknowledged_write_is_lost_when_the_server_is_killed_under_load"
            ),
        ),
    ),
    Mutant(
        "p3-the-meta-page-is-not-synced",
        "LMDB syncs what is written but not the page that points to it. A power cut loses the last "
        "commits.",
        edits=(
            Edit(
                "kvactor/storage/environment.py",
                "open_environment",
                find="""
                    lmdb.open(
                        str(path), map_size, mode=FILE_MODE, max_dbs=max_dbs, max_spare_txns=2,
                        lib_version=0,
                    )
                """,
                replace="""
                    lmdb.open(
                        str(path), map_size, mode=FILE_MODE, max_dbs=max_dbs, max_spare_txns=2,
                        lib_version=0, metasync=False,
                    )
                """,
            ),
        ),
        killed_by=(POWER_CUTS, "tests/storage/test_lmdb.py::test_p3_a_commit_is_synced_whole"),
    ),
    Mutant(
        "p3-trimmed-before-it-is-folded",
        "The journal is trimmed to its history, even if that is not folded. A kill loses what only the "
        "journal has.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer._may_forget",
                find="self._store.folded",
                replace="head",
            ),
        ),
        killed_by=(KILLS,),
    ),
    Mutant(
        "p3-trimmed-by-one-row-too-many",
        "The journal is trimmed by one row too many: the first row that is not folded goes, too.",
        edits=(
            Edit(
                "kvactor/storage/journal.py",
                "LmdbJournal._trim",
                find="encode_revision_number(self._folded)",
                replace="encode_revision_number(self._folded + 1)",
            ),
        ),
        killed_by=(
            (
                "tests/storage/test_contract.py::"
                "test_a_journal_forgets_what_may_be_trimmed_without_an_append"
            ),
            KILLS,
        ),
    ),
)
