"""The mutants that break P5: a revision is atomic: in the store and in the journal."""

from typing import Final

from tests.mutants.catalogue.killers import SIMULATION
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p5-a-failed-batch-leaves-its-beginning",
        "A batch that fails in a transaction leaves what it wrote before the failure: its own level is "
        "merged instead of forgotten.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager.savepoint",
                find="transaction.abandon()",
                replace="transaction.commit()",
            ),
        ),
        killed_by=(
            "tests/core/test_batches.py::test_a_batch_that_fails_in_the_middle_leaves_everything_as_it_was",
        ),
    ),
    Mutant(
        "p5-a-large-commit-has-several-revisions",
        "A commit of very many keys is staged in several revisions, so that no row of the journal gets "
        "too large.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.commit",
                find="return (yield from self._stage_in_steps(context, changes))",
                replace="""
                    rest = list(changes.items())
                    while rest:
                        self.stage(context, rest[:1000])
                        rest = rest[1000:]
                    return self._store.head
""",
            ),
        ),
        killed_by=(
            "tests/test_promises.py::test_p5_a_commit_is_one_revision_however_many_keys_it_has",
        ),
    ),
    Mutant(
        "p5-an-inner-commit-forgets-deletions",
        "An inner commit merges values into the level below and forgets deletions.",
        edits=(
            Edit(
                "kvactor/core/overlay.py",
                "Overlay.merge",
                find="self.update(above)",
                replace=(
                    "self.update({key: one for key, one in above.items() if one is not TOMBSTONE})"
                ),
            ),
        ),
        killed_by=(SIMULATION, "tests/core/test_model.py"),
    ),
    Mutant(
        "p5-an-inner-rollback-keeps-new-keys",
        "An inner rollback restores what it overwrote and keeps the keys that it created. A part of "
        "what is rolled back gets committed.",
        edits=(
            Edit(
                "kvactor/core/transaction.py",
                "Transaction.rollback",
                find="self._pop()",
                replace="""
                    from kvactor.core.records import TOMBSTONE

                    top = self._pop()
                    if self.overlays:
                        for key, entry in top.items():
                            if entry is not TOMBSTONE and key not in self.overlays[-1]:
                                self.overlays[-1].put(key, entry)
""",
            ),
        ),
        killed_by=(SIMULATION,),
    ),
    Mutant(
        "p5-the-feed-misses-the-newest-revision",
        "What readers get from the journal ends one revision before the newest durable one.",
        edits=(
            Edit(
                "kvactor/core/feed.py",
                "Feed.history",
                find="one.number <= newest",
                replace="one.number < newest",
            ),
        ),
        killed_by=("tests/core/test_feed.py",),
    ),
    Mutant(
        "p5-the-idempotency-record-has-its-own-revision",
        "The result of a request with an idempotency key is kept in a revision of its own, after the "
        "write.",
        edits=(
            Edit(
                "kvactor/core/executor.py",
                "Executor._attempt",
                find="idempotency.keep(self._keys, context, transaction, key, results)",
                replace="""
                    if transaction.kind is not Kind.AUTOCOMMIT:
                        idempotency.keep(self._keys, context, transaction, key, results)
""",
            ),
            Edit(
                "kvactor/core/executor.py",
                "Executor._attempt",
                find="return BatchResponse(revision, results)",
                replace="""
                    if key is not None and transaction.kind is Kind.AUTOCOMMIT:
                        own = Transaction(Kind.AUTOCOMMIT, context.now)
                        idempotency.keep(self._keys, context, own, key, results)
                        yield from self._keys.commit(context, own)
                    return BatchResponse(revision, results)
""",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_feed.py::"
                "test_a_response_kept_for_an_idempotency_key_is_part_of_its_revision_under_a_hidden_key"
            ),
        ),
    ),
)
