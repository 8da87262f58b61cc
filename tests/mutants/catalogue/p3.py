"""The mutants that break P3 in the owner: an answer or a read does not wait for the disk."""

from typing import Final

from tests.mutants.catalogue.killers import HOT_STRESS, STRESS
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p3-a-commit-forgets-what-it-has-read",
        "A transaction that only reads is told that it is committed before what it read is durable.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager.commit",
                find="""
                    if outermost:
                        context.depend_on(transaction.depends_on)
""",
                replace="",
            ),
        ),
        killed_by=(
            "tests/core/test_transaction_manager.py::test_a_commit_that_wrote_nothing_waits_for_the_flush_of_what_it_read",
        ),
    ),
    Mutant(
        "p3-a-conflict-does-not-wait",
        "A transaction is told of a conflict before the conflicting write is durable. If that write is "
        "lost, there is no conflict.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._invalidate_readers",
                find="reader.conflict(revision)",
                replace="reader.conflict(0)",
            ),
        ),
        killed_by=(
            "tests/test_promises.py::test_p3_nothing_is_acknowledged_or_visible_before_it_is_durable",
        ),
    ),
    Mutant(
        "p3-a-needless-deletion-does-not-wait",
        "Another deletion makes those of a commit needless. The commit is answered at once, while that "
        "other deletion is only staged.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.stage",
                find="context.depend_on(self._store.depends_on(key))",
                replace="pass",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_operations.py::"
                "test_a_deletion_of_a_key_whose_deletion_is_staged_waits_for_that_flush"
            ),
        ),
    ),
    Mutant(
        "p3-a-read-tells-too-new-a-revision",
        "An answer carries the newest staged revision instead of the one at which it is true.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._answer",
                find="Answer(durable, result, context.now)",
                replace="Answer(self._store.head, result, context.now)",
            ),
        ),
        killed_by=(HOT_STRESS,),
    ),
    Mutant(
        "p3-a-transactions-scan-does-not-wait",
        "A scan in a transaction is answered at once, although it shows what is only staged. Reads of "
        "single keys wait.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.scan",
                find="context.depend_on(store.depends_on_range(start, end, context))",
                replace="",
            ),
        ),
        killed_by=(
            "tests/test_promises.py::test_p3_nothing_is_acknowledged_or_visible_before_it_is_durable",
        ),
    ),
    Mutant(
        "p3-acknowledged-when-appended",
        "Writers are answered as soon as the journal has their writes, before those are durable. No "
        "test of concurrency sees it, because one owner hides it.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer._flush",
                find="self._journal.append(revisions, lambda error: post(Flushed(head, error)))",
                replace="""
                    post(Flushed(head))
                    self._journal.append(revisions, lambda error: None)
                """,
            ),
        ),
        killed_by=(
            (
                "tests/process/test_kill.py::"
                "test_a_write_is_neither_answered_nor_visible_before_its_flush_has_ended"
            ),
        ),
    ),
    Mutant(
        "p3-errors-do-not-wait",
        "An error is told at once: a client learns of a failed condition before the write that made it "
        "fail is durable.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._answer_error",
                find="depends_on = max(context.depends_on, error.depends_on)",
                replace="depends_on = 0",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_operations.py::"
                "test_a_precondition_is_decided_on_staged_writes_and_answered_with_their_flush"
            ),
        ),
    ),
    Mutant(
        "p3-published-when-appended",
        "Followers of the changes learn of a revision as soon as the journal has it, before it is "
        "durable.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._changes",
                find="self._store.revision",
                replace="max(self._store.revision, self._feed.newest)",
            ),
            Edit(
                "kvactor/core/owner.py",
                "Owner.drain",
                find="self.writer.write(last=self._stopping and not self.scheduler.backlog)",
                replace="""
                    appended = self._store.flushing
                    self.writer.write(last=self._stopping and not self.scheduler.backlog)
                    if self._store.flushing and not appended:
                        self.scheduler.take(self._feed.publish(self._store._flushing.revisions))
                """,
            ),
            Edit(
                "kvactor/core/owner.py",
                "Owner._flushed",
                find="self.scheduler.take(self._feed.publish(revisions))",
                replace="",
            ),
            Edit(
                "kvactor/core/feed.py",
                "Feed",
                find="""
                    def __len__(self) -> int:
                        return len(self._waiting)
                """,
                replace='''
                    def __len__(self) -> int:
                        return len(self._waiting)

                    @property
                    def newest(self) -> int:
                        """The newest revision that was published; 0: none yet."""
                        return self._tail[-1][0].number if self._tail else 0
                ''',
            ),
        ),
        killed_by=(
            (
                "tests/core/test_feed.py::"
                "test_a_revision_is_not_in_the_feed_before_the_owner_knows_that_it_is_durable"
            ),
        ),
    ),
    Mutant(
        "p3-readers-see-what-is-staged",
        "Reads outside of transactions look at what is staged, because it is fresher.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.read",
                find="store.durable",
                replace="store.staged",
            ),
        ),
        killed_by=(
            (
                "tests/process/test_kill.py::"
                "test_a_write_is_neither_answered_nor_visible_before_its_flush_has_ended"
            ),
        ),
    ),
    Mutant(
        "p3-scans-see-what-is-flushing",
        "Scans see what the journal has but has not made durable. Reads of single keys do not.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.scan",
                find="store.durable",
                replace="store.staged",
            ),
        ),
        killed_by=(STRESS,),
    ),
)
