"""Seeds: each a schedule of clients and faults over the whole server, judged by what the clients were
told. And the judge judged: a bug on purpose is found, and its seed finds it again.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import pytest

from kvactor.actor import StoreActor
from kvactor.core.messages import Answer
from kvactor.core.replies import HeldReplies, Outcome, ReplyTo, deliver
from kvactor.core.store import Store
from kvactor.core.transactions import Readers, Transaction
from kvactor.core.units import Units
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
def test_whatever_the_seed_nothing_acknowledged_is_lost_and_all_is_strictly_serializable(
    chunk: int,
) -> None:
    for seed in range(chunk, size("seeds"), CHUNKS):
        report = simulate(seed)
        assert not report.violation, str(report)


# -- bugs on purpose --


def answer_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    def hold(_: HeldReplies, __: int, reply: ReplyTo, outcome: Outcome) -> None:
        deliver(reply, outcome)

    patch.setattr(HeldReplies, "hold", hold)


def forget_the_journal_at_the_start(patch: pytest.MonkeyPatch) -> None:
    def recover(store: Store, revisions: Iterator[Any]) -> None:
        numbers = [revision.number for revision in revisions]
        store.revision = store.head = max([store.revision, *numbers])

    patch.setattr(Store, "recover", recover)


def keep_what_is_rolled_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Transaction, "rollback", Transaction.commit)


def see_no_conflict(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Readers, "of", lambda *_: ())


def do_it_twice(patch: pytest.MonkeyPatch) -> None:
    put = StoreActor._put

    def twice(actor: StoreActor, envelope: Any) -> None:
        put(actor, envelope)
        if envelope[1] is not None:
            put(actor, (envelope[0], None))

    patch.setattr(StoreActor, "_put", twice)


def answer_who_has_gone(patch: pytest.MonkeyPatch) -> None:
    def answer(reply: ReplyTo, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            reply.set_result(outcome)
        else:
            reply.set_exception(outcome)

    patch.setattr("kvactor.core.replies.deliver", answer)
    patch.setattr("kvactor.core.owner.deliver", answer)


def say_that_more_is_folded_than_is_durable(patch: pytest.MonkeyPatch) -> None:
    fold = MeasuredTree.fold

    def too_far(tree: MeasuredTree, changes: Any, applied: int, done: Any) -> None:
        fold(tree, changes, applied + 1, done)

    patch.setattr(MeasuredTree, "fold", too_far)


def forget_what_was_done_once(patch: pytest.MonkeyPatch) -> None:
    run = Units.run

    def anew(units: Units, message: Any, kind: Any, do: Any) -> Any:
        return run(units, msgspec.structs.replace(message, once=None), kind, do)

    patch.setattr(Units, "run", anew)


Bug = Callable[[pytest.MonkeyPatch], None]

BUGS: Final[tuple[Bug, ...]] = (
    *(answer_before_it_is_durable, forget_the_journal_at_the_start, keep_what_is_rolled_back),
    *(see_no_conflict, do_it_twice, answer_who_has_gone, say_that_more_is_folded_than_is_durable),
    forget_what_was_done_once,
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda one: one.__name__)
def test_a_bug_on_purpose_is_found_and_its_seed_finds_it_again(
    bug: Bug, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    found = next((report for report in map(simulate, range(FOUND_WITHIN)) if report.violation), None)
    assert found is not None, "no seed has found it"
    again = simulate(found.seed)
    assert (again.violation, again.faults) == (found.violation, found.faults)
    assert again.trace.digest() == found.trace.digest()
    assert f"python -m tests.simulation {found.seed}" in str(again)
    monkeypatch.undo()
    assert not simulate(found.seed).violation
