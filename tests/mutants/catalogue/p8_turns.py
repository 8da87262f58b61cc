"""The mutants that break P4 and P8 in the scheduler: nobody waits for ever, and nothing is kept."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

_SCHEDULER: Final = "kvactor/core/scheduler.py"
_TESTS: Final = ("tests/core/test_scheduler.py",)

MUTANTS: Final = (
    Mutant(
        "p4-a-failure-forgets-who-waits-for-a-turn",
        "The owner fails, and who waits for a turn is never told.",
        edits=(Edit(_SCHEDULER, "Scheduler.take_all", find="self._turns.take_all()", replace="()"),),
        killed_by=_TESTS,
    ),
    Mutant(
        "p4-a-failure-forgets-whose-turn-it-is",
        "The owner fails with a message that has waited for its turn, and its client is never told.",
        edits=(
            Edit(_SCHEDULER, "Scheduler.take_all", find="waiting.append(self._turn)", replace="pass"),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p8-a-write-waits-for-ever",
        "A write waits until the transaction with priority has ended, however long that takes.",
        edits=(
            Edit(
                _SCHEDULER,
                "Scheduler._unpark",
                find="goes_on or self._now >= until",
                replace="goes_on",
            ),
        ),
        killed_by=("tests/core/test_priority.py",),
    ),
    Mutant(
        "p8-clients-are-never-forgotten",
        "A client that has had to wait once is kept, with its debt, for good.",
        edits=(
            Edit("kvactor/core/turns.py", "Turns.next", find="self._flows.clear()", replace="pass"),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p8-a-batch-that-has-waited-is-counted-twice",
        "A batch that waits for the transaction with priority keeps what it has read, and reads again.",
        edits=(
            Edit(
                _SCHEDULER,
                "Scheduler._step",
                find="running.envelope[2].resize(running.held)",
                replace="",
            ),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p8-a-batch-that-runs-again-forgets-its-body",
        "A batch that runs again, alone, gives back the memory of its body, which it still holds.",
        edits=(
            Edit(
                "kvactor/core/executor.py",
                "Executor.batch",
                find="context.lease.resize(held)",
                replace="context.lease.release()",
            ),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p8-errors-keep-their-requests",
        "An error keeps the frames that it came through, and they keep the request and the error.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._answer_error",
                find="error.__traceback__ = error.__context__ = error.__cause__ = None",
                replace="",
            ),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p5-a-tick-meets-a-commit-of-the-shared-transaction",
        "The shared transaction expires while its commit is staged.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager.sweep",
                find="shared is None or not shared.depth",
                replace="shared is None",
            ),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p4-a-stop-does-not-wait-for-messages",
        "A stop begins though messages wait that were accepted before it.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner.drain",
                find="self._stops and not self.scheduler.backlog",
                replace="self._stops",
            ),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p8-an-idle-transaction-keeps-its-priority",
        "A transaction keeps its priority for its whole term, whatever its client does.",
        edits=(
            Edit(
                "kvactor/core/priority.py",
                "Priority.until",
                find="min(self._until, holder.last_used + self.wait)",
                replace="self._until",
            ),
        ),
        killed_by=("tests/core/test_priority.py",),
    ),
    Mutant(
        "p8-one-conflict-gives-priority-for-ever",
        "The id of a transaction that has conflicted often enough gives every try priority.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager.open",
                find="self._use_up(message.retry_of)",
                replace="",
            ),
        ),
        killed_by=("tests/core/test_priority.py",),
    ),
    Mutant(
        "p8-opens-wait-without-a-bound",
        "Any number of opens wait for priority.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager.open",
                find="priority.queue < QUEUE",
                replace="True",
            ),
        ),
        killed_by=("tests/core/test_priority.py",),
    ),
    Mutant(
        "p8-priority-comes-back-at-once",
        "The client that had priority last may have it again before others that wait.",
        edits=(
            Edit(
                _SCHEDULER,
                "Scheduler._next_to_open",
                find="next(others, opens[0] if opens else None)",
                replace="opens[0] if opens else None",
            ),
        ),
        killed_by=("tests/core/test_priority.py",),
    ),
    Mutant(
        "p4-a-stop-waits-for-priority",
        "A stop waits until each message has had its wait for the transaction with priority.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._stop",
                find="self._keys.priority.stop()",
                replace="",
            ),
        ),
        killed_by=_TESTS,
    ),
    Mutant(
        "p8-tombstones-stay-until-the-memtable-is-full",
        "Deletions are folded by their bytes alone. Ranges step over tens of thousands of them.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer._fold_if_full",
                find="memtable.tombstones >= MAX_TOMBSTONES",
                replace="False",
            ),
        ),
        killed_by=("tests/core/test_work.py",),
    ),
    Mutant(
        "p8-one-client-displaces-all-kept-responses",
        "A client with many idempotency keys displaces those of others: a retry is done twice.",
        edits=(
            Edit(
                "kvactor/core/kept.py",
                "KeptResponses.take_excess",
                find="share.size - self._limit // 2",
                replace="0",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
)
