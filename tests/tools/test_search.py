"""Two judges of the same histories: the one by revisions, and the one that tries every order. What the
first one passes, the second one has to find an order for.
"""

from random import Random

import msgspec
import pytest
from sortedcontainers import SortedDict

from kvactor.tools.stress.checker import check
from kvactor.tools.stress.history import NEVER, FeedEvent, History, Item, Operation, Step
from kvactor.tools.stress.model import Run, State
from tests.tools.search import linearizable

KEYS = ("a", "b")
OPERATIONS = 7


def choose(random: Random, number: int) -> list[Step]:
    key = random.choice(KEYS)
    steps = [
        Step("put", key, f"v{number}"),
        Step("get", key),
        Step("delete", key),
        Step("scan", "a", ["z", 9, False]),
        Step("increment", "n", 1),
    ]
    return random.choices(steps, [4, 4, 2, 1, 1], k=random.choice([1, 1, 2, 3]))


def play(random: Random) -> History:
    """Have a few clients speak with a server that does what the model does, and be told the truth."""
    state: State = SortedDict()
    history = History("")
    running: list[Operation] = []
    executed: list[Operation] = []
    time = 0.0
    begun = 0
    while begun < OPERATIONS or running or executed:
        time += 1
        what = random.choice(["begin", "execute", "end"])
        if what == "begin" and begun < OPERATIONS and len(running) + len(executed) < 4:
            begun += 1
            running.append(Operation("any", begun, "ok", time, 0.0, 0.0, steps=choose(random, begun)))
        elif what == "execute" and running:
            one = running.pop(random.randrange(len(running)))
            execute(one, state, history)
            executed.append(one)
        elif what == "end" and executed:
            one = executed.pop(random.randrange(len(executed)))
            one.ended = time
            if random.random() < 0.15 and one.writes:
                one.outcome, one.ended, one.told, one.revision = "info", NEVER, 0, 0
            history.operations.append(one)
    history.final = [Item(key, *entry[:2]) for key, entry in state.items()]
    return history


def execute(one: Operation, state: State, history: History) -> None:
    run = Run(state)
    told = [
        msgspec.structs.replace(step, result=getattr(run, step.what)(step.key, step.argument))
        for step in one.steps
    ]
    changes = Run(state).play(one.steps, 0)
    if changes:
        history.revision += 1
        history.feed.append(FeedEvent(history.revision, changes))
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = (value, history.revision, 0)
    one.steps, one.told, one.revision = told, len(told), history.revision


def falsify(random: Random, history: History) -> None:
    """Have one of the clients told something else, or at another time."""
    one = random.choice(history.operations)
    match random.choice(["result", "result", "result", "revision", "time", "outcome"]):
        case "result":
            index = random.randrange(len(one.steps))
            other = random.choice([step for each in history.operations for step in each.steps])
            if other.what == one.steps[index].what:
                one.steps[index] = msgspec.structs.replace(one.steps[index], result=other.result)
        case "revision":
            one.revision = max(0, one.revision + random.choice([-1, 1]))
        case "time":
            other_one = random.choice(history.operations)
            one.began, one.ended = other_one.began, other_one.ended
        case _:
            one.outcome = random.choice(["ok", "observed", "fail"])


@pytest.mark.parametrize("seed", range(8))
def test_a_true_history_passes_checker_and_search(seed: int) -> None:
    random = Random(seed)
    for _ in range(40):
        history = play(random)
        assert check(history).violation == ""
        assert linearizable(history.operations)


@pytest.mark.parametrize("seed", range(8))
def test_a_history_that_passes_the_checker_has_an_order(seed: int) -> None:
    random = Random(seed)
    passed = refused = agreed = 0
    for _ in range(80):
        history = play(random)
        for _ in range(random.randint(1, 2)):
            falsify(random, history)
        possible = linearizable(history.operations)
        if check(history).violation:
            refused += 1
            agreed += not possible
        else:
            passed += 1
            assert possible, history
    # It is no agreement if one of them always says the same.
    assert min(passed, refused, agreed) > 5
