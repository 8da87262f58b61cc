"""Is a short history linearizable? Judged by time alone, by trying every order: exponential, and
without a look at the order that revisions give.

It keeps the checker honest: a history that the checker passes has to have an order here too (Wing
and Gong, "Testing and verifying concurrent objects", 1993, with Lowe's memory of states seen).
"""

from collections.abc import Hashable, Sequence

import msgspec
from sortedcontainers import SortedDict

from kvactor.tools.stress.history import Changes, Operation, Step
from kvactor.tools.stress.model import Entry, Mismatch, Run, State


def linearizable(operations: Sequence[Operation]) -> bool:
    """Is there an order of the operations that the model agrees with, and time? Those of which the
    outcome is unknown may be left out. Revisions that were told are not looked at.
    """
    open_ = [one for one in operations if one.outcome != "fail"]
    untimed = [[_without_revisions(step) for step in one.steps] for one in open_]
    seen: set[Hashable] = set()

    def search(left: frozenset[int], state: dict[str, Entry]) -> bool:
        if all(open_[number].outcome == "info" for number in left):
            return True
        memory = (left, tuple(sorted(state.items())))
        if memory in seen:
            return False
        seen.add(memory)
        first = min(open_[number].ended for number in left)
        for number in sorted(left):
            one = open_[number]
            if one.began > first:
                continue
            try:
                changes = Run(_state(state)).play(untimed[number], one.told)
            except Mismatch:
                continue
            if search(left - {number}, _after(state, one, changes)):
                return True
        return False

    return search(frozenset(range(len(open_))), {})


def _without_revisions(step: Step) -> Step:
    result = step.result
    if step.what == "get" and result is not None:
        result = [*result[:-1], None]
    elif step.what == "scan" and result is not None:
        result = [[*one[:-1], None] for one in result]
    return msgspec.structs.replace(step, result=result)


def _state(entries: dict[str, Entry]) -> State:
    return SortedDict(entries)


def _after(state: dict[str, Entry], one: Operation, changes: Changes) -> dict[str, Entry]:
    if one.outcome == "observed":
        return state
    after = {key: entry for key, entry in state.items() if key not in changes}
    return after | {
        key: (value, one.revision, 0) for key, value in changes.items() if value is not None
    }
