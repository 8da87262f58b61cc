"""The mutants that break P7: a client that goes away neither undoes nor half-does what it asked for."""

from typing import Final

from tests.mutants.catalogue.killers import SIMULATION
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p7-a-repeated-commit-is-not-known",
        "The ids of committed transactions are forgotten. A client that has lost the answer to a "
        "commit cannot learn of it.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "",
                find="_REMEMBERED: Final = (State.COMMITTED, State.CONFLICTED)",
                replace="_REMEMBERED: Final = (State.CONFLICTED,)",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_transaction_manager.py::"
                "test_a_commit_that_is_repeated_waits_for_the_same_flush_and_gets_the_same_answer"
            ),
        ),
    ),
    Mutant(
        "p7-an-abandoned-request-is-answered",
        "The owner gives an answer without checking that somebody waits for it. One client that goes "
        "away ends the server.",
        edits=(
            Edit(
                "kvactor/core/replies.py",
                "deliver",
                find="""
                    if reply.done():
                        return
                """,
                replace="",
            ),
        ),
        killed_by=(
            SIMULATION,
            "tests/test_promises.py::test_p7_cancelling_a_waiter_neither_undoes_nor_harms",
        ),
    ),
    Mutant(
        "p7-an-abandoned-request-is-not-done",
        "The owner does not do what a client asked for if that client has gone away. That saves work "
        "under load.",
        edits=(
            Edit(
                "kvactor/core/scheduler.py",
                "Scheduler.take",
                find="self._handle(envelope)",
                replace="""
                    if envelope[1] is not None and envelope[1].done():
                        continue
                    self._handle(envelope)
                """,
            ),
        ),
        killed_by=("tests/test_promises.py::test_p7_cancelling_a_waiter_neither_undoes_nor_harms",),
    ),
    Mutant(
        "p7-an-idempotency-key-lasts-milliseconds",
        "The window of idempotency keys is taken for milliseconds. A write that is repeated two "
        "minutes later is done twice.",
        edits=(
            Edit(
                "kvactor/core/idempotency.py",
                "keep",
                find="keys.settings.idempotency_window * 1000",
                replace="keys.settings.idempotency_window",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_idempotency.py::"
                "test_an_idempotency_key_is_forgotten_after_its_window_and_swept"
            ),
        ),
    ),
    Mutant(
        "p7-followers-that-are-gone-are-kept",
        "Readers of the feed that have gone away are kept until there is something to tell them.",
        edits=(Edit("kvactor/core/owner.py", "Owner._tick", find="self._feed.sweep()", replace=""),),
        killed_by=("tests/core/test_feed.py",),
    ),
)
