"""The mutants that break P4: every request gets exactly one answer, or, when the process dies, a
closed connection.
"""

from typing import Final

from tests.mutants.catalogue.killers import HOT_STRESS, SIMULATION
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p4-a-stop-does-not-tell-followers",
        "Who waits in the feed gets no answer when the server stops.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._end",
                find="self.scheduler.take(self._feed.release())",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_feed.py::"
                "test_a_stop_answers_waiting_readers_with_nothing_and_no_reader_waits_after_it"
            ),
        ),
    ),
    Mutant(
        "p4-a-stop-does-not-wait-for-the-flush",
        "A stop waits for the fold but not for the flush that is under way. The writers of that flush "
        "get no answer.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer.idle",
                find="store.pending",
                replace="False",
            ),
        ),
        killed_by=("tests/test_promises.py::test_p4_a_stop_waits_for_the_flush_of_what_was_accepted",),
    ),
    Mutant(
        "p4-a-stop-drops-a-request-that-has-just-come",
        "A stop drops a request that came right before it.",
        edits=(
            Edit(
                "kvactor/web/ending.py",
                "EndingHandler.shutdown",
                find="await asyncio.sleep(0)",
                replace="",
            ),
        ),
        killed_by=(
            "tests/web/test_connections.py::test_a_request_that_came_right_before_a_stop_is_answered",
        ),
    ),
    Mutant(
        "p4-a-stop-drops-requests",
        "A stop cancels the requests that are being handled.",
        edits=(
            Edit(
                "kvactor/web/ending.py",
                "EndingHandler.shutdown",
                find="self._task_handler is not None and not self._request_in_progress",
                replace="self._task_handler is not None",
            ),
        ),
        killed_by=(
            (
                "tests/simulation/test_cancelling.py::"
                "test_a_disturbance_at_any_step_leaves_all_or_nothing_and_a_server_that_works"
            ),
        ),
    ),
    Mutant(
        "p4-a-stop-waits-for-idle-connections",
        "A stop waits for connections without a request: new ones, and those with a body that nobody "
        "reads.",
        edits=(
            Edit(
                "kvactor/web/ending.py",
                "EndingHandler.shutdown",
                find="""
                    if self._task_handler is not None and not self._request_in_progress:
                        self._task_handler.cancel()
                """,
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/simulation/test_cancelling.py::"
                "test_a_disturbance_at_any_step_leaves_all_or_nothing_and_a_server_that_works"
            ),
        ),
    ),
    Mutant(
        "p4-answers-are-swapped",
        "Held answers are sorted by revision, but their askers by time. An asker gets the answer of "
        "another one.",
        edits=(
            Edit(
                "kvactor/core/replies.py",
                "HeldReplies.release",
                find="""
                    for depends_on, reply, outcome in held:
                        if depends_on <= durable:
                            deliver(reply, outcome)
                """,
                replace="""
                    due = [item for item in held if item[0] <= durable]
                    for (_, reply, _), (_, _, outcome) in zip(
                        due, sorted(due, key=lambda item: item[0]), strict=True
                    ):
                        deliver(reply, outcome)
                """,
            ),
        ),
        killed_by=(HOT_STRESS, SIMULATION),
    ),
    Mutant(
        "p4-one-answer-per-revision",
        "Held answers are kept by their revision. If two rest on the same one, the first is never "
        "given.",
        edits=(
            Edit(
                "kvactor/core/replies.py",
                "HeldReplies.hold",
                find="self._held.append((depends_on, reply, outcome))",
                replace="""
                    self._held = [one for one in self._held if one[0] != depends_on]
                    self._held.append((depends_on, reply, outcome))
                """,
            ),
        ),
        killed_by=(
            "tests/test_promises.py::test_p4_every_asker_gets_exactly_one_answer",
            (
                "tests/core/test_idempotency.py::"
                "test_two_writes_at_once_under_one_key_are_done_once_and_wait_for_the_same_flush"
            ),
        ),
    ),
    Mutant(
        "p4-the-failed-drain-is-forgotten",
        "When the owner fails, it tells those who wait in the mailbox but not those of the drain in "
        "which it fails.",
        edits=(
            Edit(
                "kvactor/actor.py",
                "StoreActor._refuse",
                find="self._draining + self._mailbox",
                replace="self._mailbox",
            ),
        ),
        killed_by=(
            "tests/test_promises.py::test_p10_an_unexpected_exception_in_the_owner_is_unknown_to_every_waiter_and_ends_the_actor",
        ),
    ),
    Mutant(
        "p4-a-failure-forgets-readers-of-history",
        "The owner fails while the journal reads old revisions. Their readers get no answer.",
        edits=(
            Edit(
                "kvactor/core/feed.py",
                "Feed.abandoned",
                find="chain(self._waiting, *self._reading.values())",
                replace="self._waiting",
            ),
        ),
        killed_by=("tests/core/test_feed.py",),
    ),
    Mutant(
        "p4-a-broken-reply-fails-the-owner",
        "A reply that cannot take its answer fails the owner, and with it every other request.",
        edits=(
            Edit(
                "kvactor/core/replies.py",
                "deliver",
                find='log.exception("a reply could not be given to its asker")',
                replace="raise",
            ),
        ),
        killed_by=("tests/test_actor.py",),
    ),
    Mutant(
        "p4-a-stop-waits-for-the-sweep",
        "A stop waits until a sweep has removed every expired key.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._sweep",
                find="self._stopping",
                replace="False",
            ),
        ),
        killed_by=("tests/core/test_expiry.py",),
    ),
)
