"""The mutants that break P10: if the disk fails, the process ends with an error instead of
guessing, and the next start recovers.
"""

from typing import Final

from tests.mutants.catalogue.killers import ERRORS
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p10-a-failed-flush-is-only-logged",
        "A failed flush is logged, and its writers are answered as if it had succeeded.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer.flushed",
                find="""
                    raise StorageFailed(
                        f"the journal could not flush up to revision {message.revision}"
                    ) from message.error
                """,
                replace='log.error("the journal could not flush up to revision %d", message.revision)',
            ),
        ),
        killed_by=(
            (
                "tests/test_promises.py::"
                "test_p10_a_failed_flush_is_unknown_to_every_waiter_and_ends_the_actor"
            ),
        ),
    ),
    Mutant(
        "p10-a-failed-flush-is-tried-again",
        "A failed flush is tried again. The second fdatasync returns without an error, although the "
        "pages are lost.",
        edits=(
            Edit(
                "kvactor/storage/journal.py",
                "LmdbJournal._flush",
                find="""
                    with self._env.begin(write=True) as txn:
                        self._write(txn, rows)
                """,
                replace="""
                    try:
                        with self._env.begin(write=True) as txn:
                            self._write(txn, rows)
                    except lmdb.Error:
                        with self._env.begin(write=True) as txn:
                            self._write(txn, rows)
                """,
            ),
        ),
        killed_by=(
            "tests/process/test_failing_disk.py",
            "tests/storage/test_lmdb.py::test_p10_a_flush_that_has_failed_is_told_and_not_tried_again",
        ),
    ),
    Mutant(
        "p10-a-failed-fold-is-only-logged",
        "A failed fold is logged. What it should fold is read from the tree, which does not have it.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer.folded",
                find='raise StorageFailed("the tree could not fold the journal in") from message.error',
                replace='log.error("the tree could not fold the journal in: %s", message.error)',
            ),
        ),
        killed_by=("tests/test_promises.py::test_p10_a_failed_fold_ends_the_owner_too", ERRORS),
    ),
    Mutant(
        "p10-a-failure-ends-with-status-0",
        "The process ends with status 0 after a failure. Its supervisor does not start it again.",
        edits=(
            Edit(
                "kvactor/server.py",
                "Server.failed",
                find="self.actor.done.exception() is not None",
                replace="self.actor.done.cancelled()",
            ),
        ),
        killed_by=(ERRORS,),
    ),
    Mutant(
        "p10-a-gap-in-the-journal-is-skipped",
        "Recovery skips revisions that are missing in the journal, instead of refusing to start.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store.recover",
                find="revision.number != self.head + 1",
                replace="revision.number <= self.head",
            ),
        ),
        killed_by=(
            "tests/core/test_owner.py::test_a_journal_with_a_gap_or_behind_its_tree_is_refused",
        ),
    ),
    Mutant(
        "p10-an-error-is-lost-between-threads",
        "The journal's thread reports that it is done, but not whether it has failed.",
        edits=(
            Edit("kvactor/storage/journal.py", "_report", find="future.exception()", replace="None"),
        ),
        killed_by=(
            (
                "tests/process/test_failing_disk.py::"
                "test_a_write_whose_flush_fails_is_not_acknowledged_and_the_process_ends"
            ),
            ERRORS,
        ),
    ),
    Mutant(
        "p10-an-unknown-outcome-is-told-as-not-done",
        "When the owner fails, those who wait are told that nothing was done. They ask again.",
        edits=(
            Edit(
                "kvactor/actor.py",
                "StoreActor._fail",
                find="""
                    self._refuse(_unknown)
                    self._owner.fail(_unknown())
                """,
                replace="""
                    self._refuse(_stopping)
                    self._owner.fail(_stopping())
                """,
            ),
        ),
        killed_by=(
            (
                "tests/test_promises.py::"
                "test_p10_a_failed_flush_is_unknown_to_every_waiter_and_ends_the_actor"
            ),
        ),
    ),
    Mutant(
        "p10-checksums-are-not-verified",
        "A read does not verify the checksum of a record. Damage to the disk comes out as a value.",
        edits=(
            Edit(
                "kvactor/storage/tree.py",
                "_record",
                find="verify(key, record)",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/process/test_damage.py::"
                "test_a_flipped_bit_in_a_record_is_an_error_for_its_key_and_can_be_repaired_by_writing"
            ),
        ),
    ),
    Mutant(
        "p10-the-owner-goes-on-after-an-unexpected-exception",
        "The owner tells an unexpected exception to its asker and goes on, in an unknown state.",
        edits=(
            Edit(
                "kvactor/core/scheduler.py",
                "Scheduler._handle",
                find="""
                    except KvactorError as error:
                        result = error
""",
                replace="""
                    except KvactorError as error:
                        result = error
                    except Exception as error:
                        from kvactor.errors import OutcomeUnknown

                        if reply is None:
                            raise
                        result = OutcomeUnknown(str(error))
""",
            ),
        ),
        killed_by=(
            "tests/test_promises.py::test_p10_an_unexpected_exception_in_the_owner_is_unknown_to_every_waiter_and_ends_the_actor",
        ),
    ),
    Mutant(
        "p10-a-stop-has-no-deadline",
        "A stop waits for a disk that hangs, and the process neither serves nor ends.",
        edits=(
            Edit(
                "kvactor/cli/serve.py",
                "serve",
                find="""
                    deadline.start(
                        settings.shutdown_timeout + settings.exit_timeout, lambda: server.waiting_for
                    )
                """,
                replace="",
            ),
        ),
        killed_by=(
            "tests/process/test_stop.py::test_a_stop_while_the_disk_hangs_ends_at_the_deadline_and_logs_the_reason",
        ),
    ),
    Mutant(
        "p10-a-tick-ends-with-an-error",
        "A tick that cannot read the free space is lost. Expiry and timeouts pause without a sign.",
        edits=(
            Edit("kvactor/actor.py", "StoreActor._free_space", find="return None", replace="raise"),
        ),
        killed_by=("tests/test_actor.py",),
    ),
)
