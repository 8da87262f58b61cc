"""The states of a transaction: every event in every state, and that a refused one has no effect."""

from collections.abc import Callable
from typing import Any

import pytest

from kvactor.core.records import encode
from kvactor.core.transaction import TRANSITIONS, Event, Kind, State, Transaction
from kvactor.errors import KvactorError, TransactionConflict, TransactionNotFound

#: The revision that a conflicted transaction has conflicted with.
CONFLICTING = 7

#: What may happen in which state, and the state after it. Everything else is refused.
LEGAL: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.USE): State.OPEN,
    (State.OPEN, Event.BEGIN): State.OPEN,
    (State.OPEN, Event.RELEASE): State.OPEN,
    (State.OPEN, Event.ROLLBACK_TO): State.OPEN,
    (State.OPEN, Event.COMMIT): State.COMMITTED,
    (State.OPEN, Event.ROLLBACK): State.ROLLED_BACK,
    (State.OPEN, Event.CONFLICT): State.CONFLICTED,
    (State.OPEN, Event.EXPIRE): State.EXPIRED,
    (State.CONFLICTED, Event.ROLLBACK): State.ROLLED_BACK,
    (State.CONFLICTED, Event.CONFLICT): State.CONFLICTED,
    (State.CONFLICTED, Event.EXPIRE): State.EXPIRED,
    (State.COMMITTED, Event.COMMIT): State.COMMITTED,
}

#: How a transaction comes into each state.
WAYS: dict[State, Callable[[Transaction], object]] = {
    State.OPEN: lambda _: None,
    State.CONFLICTED: lambda transaction: transaction.conflict(CONFLICTING),
    State.COMMITTED: lambda transaction: transaction.commit(),
    State.ROLLED_BACK: lambda transaction: transaction.rollback(),
    State.EXPIRED: lambda transaction: transaction.expire(),
}

#: What the methods do: to the topmost of two levels, and to the only one.
METHODS: dict[str, tuple[Callable[[Transaction], object], Event, Event]] = {
    "begin": (lambda transaction: transaction.begin(), Event.BEGIN, Event.BEGIN),
    "rollback": (lambda transaction: transaction.rollback(), Event.ROLLBACK_TO, Event.ROLLBACK),
    "rollback_all": (lambda transaction: transaction.rollback_all(), Event.ROLLBACK, Event.ROLLBACK),
    "commit": (lambda transaction: transaction.commit(), Event.RELEASE, Event.COMMIT),
    "conflict": (lambda transaction: transaction.conflict(9), Event.CONFLICT, Event.CONFLICT),
    "expire": (lambda transaction: transaction.expire(), Event.EXPIRE, Event.EXPIRE),
}


def transaction_in(state: State, depth: int = 1) -> Transaction:
    transaction = Transaction(Kind.ISOLATED, 0, id_="t")
    for level in range(depth):
        if level:
            transaction.begin()
        transaction.put(b"%d" % level, encode(b"", b"v", ""))
    transaction.reads.add_key(b"seen")
    transaction.depend_on(3)
    WAYS[state](transaction)
    assert transaction.state is state
    return transaction


def held_by(transaction: Transaction) -> tuple[Any, ...]:
    """All that an event could change."""
    overlays = [dict(overlay) for overlay in transaction.overlays]
    return transaction.state, overlays, transaction.depends_on, transaction.size


def refused(transaction: Transaction, do: Callable[[Transaction], object]) -> KvactorError:
    before = held_by(transaction)
    with pytest.raises((TransactionConflict, TransactionNotFound)) as caught:
        do(transaction)
    assert held_by(transaction) == before
    error: KvactorError = caught.value
    return error


def test_every_state_is_in_the_table_and_has_a_way_to_it() -> None:
    assert set(TRANSITIONS) == set(WAYS) == set(State)
    assert {state for after in TRANSITIONS.values() for state in after.values()} == set(State)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_moves_a_transaction_if_the_table_says_so_else_it_is_refused(
    state: State, event: Event
) -> None:
    transaction = transaction_in(state)
    if (state, event) in LEGAL:
        transaction.move(event)
        assert transaction.state is LEGAL[state, event]
        return
    error = refused(transaction, lambda one: one.move(event))
    if state is State.CONFLICTED:
        assert isinstance(error, TransactionConflict)
        assert error.depends_on == CONFLICTING
    else:
        assert isinstance(error, TransactionNotFound)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("state", [State.OPEN, State.CONFLICTED])
def test_a_method_asks_the_table_before_it_changes_anything(
    state: State, depth: int, method: str
) -> None:
    do, inner, outermost = METHODS[method]
    event = inner if depth > 1 else outermost
    transaction = transaction_in(state, depth)
    if (state, event) in LEGAL:
        do(transaction)
        assert transaction.state is LEGAL[state, event]
        assert (transaction.depth == 0) is (event in {Event.COMMIT, Event.ROLLBACK, Event.EXPIRE})
    else:
        refused(transaction, do)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", [State.COMMITTED, State.ROLLED_BACK, State.EXPIRED])
def test_a_transaction_that_has_ended_stays_as_it_is(state: State, method: str) -> None:
    transaction = transaction_in(state)
    do, _, event = METHODS[method]
    if (state, event) in LEGAL:
        before = held_by(transaction)
        assert not do(transaction)
        assert held_by(transaction) == before
    else:
        refused(transaction, do)


def test_a_commit_of_an_inner_level_is_merged_and_one_of_the_outermost_is_returned() -> None:
    transaction = transaction_in(State.OPEN, 2)
    assert transaction.commit() is None
    assert (transaction.state, transaction.depth) == (State.OPEN, 1)
    changes = transaction.commit()
    assert changes is not None
    assert set(changes) == {b"0", b"1"}


def test_a_conflicted_transaction_keeps_its_levels_and_drops_its_writes() -> None:
    transaction = transaction_in(State.CONFLICTED, 3)
    assert (transaction.depth, transaction.overlays) == (3, [{}, {}, {}])
    transaction.conflict(5)
    assert transaction.depends_on == CONFLICTING
    transaction.conflict(9)
    assert transaction.depends_on == 9
