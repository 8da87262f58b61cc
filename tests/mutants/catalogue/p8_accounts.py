"""The mutants that break the accounts of P8: work is charged, memory is counted, turns are shared."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

STEPS = "tests/core/test_steps.py"
MEMORY = "tests/core/test_memory.py"
TURNS = "tests/core/test_turns.py"
PRIORITY = "tests/core/test_priority.py"

MUTANTS: Final = (
    Mutant(
        "p8-steps-over-tombstones-are-free",
        "An overlay does not charge what a range steps over. Tombstones cost nothing.",
        edits=(
            Edit("kvactor/core/overlay.py", "Overlay.range", find="work.charge(STEP)", replace="pass"),
        ),
        killed_by=("tests/core/test_work.py",),
    ),
    Mutant(
        "p8-the-tree-charges-no-bytes",
        "The tree reads and checks a value before its bytes are charged.",
        edits=(
            Edit(
                "kvactor/storage/tree.py",
                "_record",
                find="work.charge(len(found) // BYTES)",
                replace="pass",
            ),
        ),
        killed_by=("tests/storage/test_lmdb.py::test_p8_a_value_is_charged_before_it_is_read",),
    ),
    Mutant(
        "p8-lookups-are-free",
        "A key that is looked up costs nothing.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.read",
                find="context.charge(LOOKUP)",
                replace="pass",
            ),
        ),
        killed_by=(STEPS,),
    ),
    Mutant(
        "p8-writes-are-charged-twice",
        "An entry that is written is charged twice. The largest honest batch is refused.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.write",
                find="self.admission.check_write(transaction, key, entry)",
                replace="""
                    self.admission.check_write(transaction, key, entry)
                    context.charge(2 * WRITE)
                """,
            ),
        ),
        killed_by=("tests/core/test_work.py",),
    ),
    Mutant(
        "p8-a-cut-page-skips-keys",
        "A page that is cut short by its work continues behind a key that it has not walked.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.scan",
                find="""
                    if context.spent >= work_end and last is not None:
                        more = True
                        break
                """,
                replace="""
                    if context.spent >= work_end and last is not None:
                        more, last = True, key
                        break
                """,
            ),
        ),
        killed_by=("tests/core/test_work.py",),
    ),
    Mutant(
        "p8-results-are-not-counted",
        "The results of the owner do not count in the account of memory.",
        edits=(
            Edit(
                "kvactor/core/executor.py",
                "_shown",
                find="return len(result) * (TEXT_SHOWN if is_text(result) else SHOWN)",
                replace="return 0",
            ),
        ),
        killed_by=(MEMORY, "tests/core/test_scheduler.py"),
    ),
    Mutant(
        "p8-transactions-are-not-counted",
        "What transactions hold does not count in the account of memory.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._check_size",
                find="transaction.lease.resize(size)",
                replace="pass",
            ),
        ),
        killed_by=(MEMORY,),
    ),
    Mutant(
        "p8-ended-transactions-are-counted",
        "A transaction that has ended does not give back what it has held.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager._close",
                find="transaction.lease.close()",
                replace="pass",
            ),
        ),
        killed_by=(MEMORY,),
    ),
    Mutant(
        "p8-conflicted-transactions-are-counted",
        "A transaction that conflicts drops its writes, and does not give back their bytes.",
        edits=(
            Edit(
                "kvactor/core/transaction.py",
                "Transaction.conflict",
                find="self.lease.release()",
                replace="pass",
            ),
        ),
        killed_by=(MEMORY,),
    ),
    Mutant(
        "p8-a-lease-gives-back-half",
        "A lease that is closed gives its bytes back to its client, and not to the account.",
        edits=(
            Edit(
                "kvactor/core/memory.py",
                "Lease.close",
                find="self._move(-self.size)",
                replace="""
                    self.client.used -= self.size
                    self.size = 0
                """,
            ),
        ),
        killed_by=(MEMORY,),
    ),
    Mutant(
        "p8-one-client-takes-all",
        "One client may take the whole account of memory while others are connected.",
        edits=(
            Edit(
                "kvactor/core/memory.py",
                "MemoryAccount.left",
                find="left if self.present <= 1 else min(left, self.size // 2 - client.used)",
                replace="left",
            ),
        ),
        killed_by=(MEMORY,),
    ),
    Mutant(
        "p8-debts-are-forgotten",
        "What a client's messages walk is not charged. One with expensive messages gets as many turns "
        "as the others.",
        edits=(
            Edit(
                "kvactor/core/turns.py",
                "Turns.charge",
                find="flow.credit -= units",
                replace="flow.credit = 0",
            ),
        ),
        killed_by=(TURNS,),
    ),
    Mutant(
        "p8-steps-leave-no-time",
        "What a step of a long message walks counts as the drain's. A long step starves all others.",
        edits=(
            Edit(
                "kvactor/core/scheduler.py",
                "Scheduler.run",
                find="""
                    if self._running is not None:
                        self._step(self._running)
                    self._spent = 0
                """,
                replace="""
                    self._spent = 0
                    if self._running is not None:
                        self._step(self._running)
                """,
            ),
        ),
        killed_by=(STEPS,),
    ),
    Mutant(
        "p6-writes-pass-a-commit-that-is-staged",
        "Others write while a commit is staged in steps. The commit takes a revision that another "
        "write has.",
        edits=(
            Edit(
                "kvactor/core/scheduler.py",
                "Scheduler.must_wait",
                find="running.context.exclusive and reads_staged(message)",
                replace="False",
            ),
        ),
        killed_by=(STEPS,),
    ),
    Mutant(
        "p6-a-long-batch-reads-two-states",
        "A long batch is not isolated. Others write between its steps what it has read.",
        edits=(
            Edit(
                "kvactor/core/executor.py",
                "Executor.batch",
                find="return (yield from self._attempt(context, message, Kind.ISOLATED))",
                replace="return (yield from self._attempt(context, message, Kind.AUTOCOMMIT))",
            ),
        ),
        killed_by=(STEPS,),
    ),
    Mutant(
        "p8-priority-dooms-nobody",
        "A commit that has waited for a transaction with priority goes on, and dooms it.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._give_way",
                find="""
                    if transaction is not None and transaction.id is not None:
                        self._conflicts.forget(transaction)
                        transaction.conflict(0)
                """,
                replace="",
            ),
        ),
        killed_by=(PRIORITY,),
    ),
    Mutant(
        "p5-a-part-of-a-revision-loses-its-last-change",
        "A follower with a prefix does not get the last change of its keys.",
        edits=(
            Edit(
                "kvactor/api/changes.py",
                "EncodedRevision.cut",
                find="self._view[self._places[first] : self._places[end] - 1]",
                replace="self._view[self._places[first] : self._places[end - 1] - 1]",
            ),
        ),
        killed_by=("tests/api/test_changes.py",),
    ),
    Mutant(
        "p8-items-are-taken-before-they-are-counted",
        "All items of a batch become the core's before it is refused for their number.",
        edits=(
            Edit(
                "kvactor/web/v1/batch.py",
                "BatchRoutes.parse_steps",
                find="""
                    if count > self._maximum:
                        raise batch_too_large(self._maximum)
                """,
                replace="",
            ),
        ),
        killed_by=(
            "tests/web/v1/test_batch.py::test_too_many_items_are_refused_before_they_are_taken",
        ),
    ),
    Mutant(
        "p8-checks-are-converted-at-once",
        "All checks of a batch are converted in one step, and nobody else is served meanwhile.",
        edits=(
            Edit(
                "kvactor/web/v1/batch.py",
                "BatchRoutes.parse_steps",
                find="yield from each(BatchCheck.to_core, body.checks)",
                replace="list(map(BatchCheck.to_core, body.checks))",
            ),
        ),
        killed_by=("tests/web/v1/test_batch.py",),
    ),
    Mutant(
        "p8-a-page-is-encoded-at-once",
        "A page of a scan, of up to max_body_size bytes, is encoded in one step.",
        edits=(
            Edit(
                "kvactor/web/v1/ranges.py",
                "RangeRoutes.scan",
                find="await exchange.take(encoded(item(*one, values=asked.values) for one in found))",
                replace='b",".join(encode(item(*one, values=asked.values)) for one in found)',
            ),
        ),
        killed_by=("tests/web/v1/test_scans.py",),
    ),
)
