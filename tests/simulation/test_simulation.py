"""Seeds: each is a schedule of clients and faults over the whole server, checked by the answers that
the clients got. The checker is checked, too: a mutant is killed, and its seed kills it again.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from kvactor.actor import StoreActor
from kvactor.core import idempotency
from kvactor.core.conflicts import ConflictIndex
from kvactor.core.messages import Answer
from kvactor.core.replies import HeldReplies, Outcome, ReplyTo, deliver
from kvactor.core.store import Store
from kvactor.core.transaction import Transaction
from kvactor.metrics import MeasuredTree
from tests.simulation.schedules import simulate
from tests.sizes import size

#: Parts of the seeds, for as many processes as like to help.
CHUNKS: Final = 8

#: Seeds within which a bug is found.
FOUND_WITHIN: Final = 400


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Let the garbage collector look at the runs only, and not at all that was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_simulated_schedule_loses_no_acknowledged_write_and_is_strictly_serializable(
    chunk: int,
) -> None:
    for seed in range(chunk, size("seeds"), CHUNKS):
        report = simulate(seed)
        assert not report.violation, str(report)


# -- mutants --


def answer_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    def hold(_: HeldReplies, __: int, reply: ReplyTo, outcome: Outcome) -> None:
        deliver(reply, outcome)

    patch.setattr(HeldReplies, "hold", hold)


def forget_the_journal_at_the_start(patch: pytest.MonkeyPatch) -> None:
    def recover(store: Store, revisions: Iterator[Any]) -> None:
        numbers = [revision.number for revision in revisions]
        store.revision = store.head = max([store.revision, *numbers])

    patch.setattr(Store, "recover", recover)


def keep_rolled_back_writes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Transaction, "rollback", Transaction.commit)


def miss_conflicts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConflictIndex, "readers_of", lambda *_: ())


def handle_messages_twice(patch: pytest.MonkeyPatch) -> None:
    submit = StoreActor.submit

    def twice(actor: StoreActor, message: Any, reply: Any, lease: Any) -> None:
        submit(actor, message, reply, lease)
        actor._put((message, None, lease))

    patch.setattr(StoreActor, "submit", twice)


def answer_cancelled_requests(patch: pytest.MonkeyPatch) -> None:
    def answer(reply: ReplyTo, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            reply.set_result(outcome)
        else:
            reply.set_exception(outcome)

    patch.setattr("kvactor.core.replies.deliver", answer)
    patch.setattr("kvactor.core.owner.deliver", answer)


def claim_more_folded_than_durable(patch: pytest.MonkeyPatch) -> None:
    fold = MeasuredTree.fold

    def too_far(tree: MeasuredTree, changes: Any, applied: int, done: Any) -> None:
        fold(tree, changes, applied + 1, done)

    patch.setattr(MeasuredTree, "fold", too_far)


def forget_idempotency_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(idempotency, "find", lambda *_: None)


Mutant = Callable[[pytest.MonkeyPatch], None]

MUTANTS: Final[tuple[Mutant, ...]] = (
    *(answer_before_it_is_durable, forget_the_journal_at_the_start, keep_rolled_back_writes),
    *(miss_conflicts, handle_messages_twice, answer_cancelled_requests, claim_more_folded_than_durable),
    forget_idempotency_keys,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.__name__)
def test_a_mutant_is_killed_and_its_seed_kills_it_again(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    found = next((report for report in map(simulate, range(FOUND_WITHIN)) if report.violation), None)
    assert found is not None, "no seed has found it"
    again = simulate(found.seed)
    assert (again.violation, again.faults) == (found.violation, found.faults)
    assert again.trace.digest() == found.trace.digest()
    assert f"python -m tests.simulation {found.seed}" in str(again)
    monkeypatch.undo()
    assert not simulate(found.seed).violation
