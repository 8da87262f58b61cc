"""Every interleaving of short programs, enumerated: no sleeps, no luck. Each outcome is one that
some serial order gives.

A program is a client: one plain request, or an isolated transaction that it gives up at its first
conflict. The disk is a program too: each of its steps lets a flush finish. So is the clock: its step
brings the time at which a key expires, and the key's end is a write whose answer nobody waits for.
The checker runs the programs that went through one after the other on a plain dict, in every order
that real time allows.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement, permutations, product
from typing import Any, NamedTuple

import pytest

from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import (
    AUTOCOMMIT,
    Begin,
    Commit,
    Message,
    Open,
    Rollback,
    TransactionRef,
)
from kvactor.core.operations import Get, Increment
from kvactor.core.records import value_of
from kvactor.errors import ChecksFailed, KeyNotFound, TransactionConflict
from tests.core.builders import ABSENT, batch, delete, delete_range, get, put, scan
from tests.core.harness import HeldJournal, OwnerHarness, RecordingReply

Step = tuple[str, ...]
Data = dict[str, str]


class Program(NamedTuple):
    """What one client does, step by step, in an isolated transaction; or its one plain request."""

    name: str
    isolated: bool
    steps: tuple[Step, ...]


def transaction(name: str, *steps: Step) -> Program:
    return Program(name, True, (*steps, ("commit",)))


def plain(name: str, step: Step) -> Program:
    return Program(name, False, (step,))


START: Data = {"a": "a0", "m": "m0"}
#: The key that the clock's step ends, and its value.
EXPIRING: Data = {"e": "e0"}
TTL = 10

SHORT = (
    transaction("change a", ("get", "a"), ("set", "a", "a1")),
    transaction("read a, write b", ("get", "a"), ("set", "b", "b1")),
    transaction("read b, write a", ("get", "b"), ("set", "a", "a2")),
    transaction("count k, add k1", ("range", "k", "l"), ("set", "k1", "1")),
    transaction("count k, add k2", ("range", "k", "l"), ("set", "k2", "2")),
    transaction("write a blindly", ("set", "a", "a3")),
    transaction("read a and b", ("get", "a"), ("get", "b")),
    transaction("delete a", ("delete", "a")),
    plain("set a", ("set", "a", "a4")),
    plain("delete a plainly", ("delete", "a")),
    plain("set k3 plainly", ("set", "k3", "3")),
    plain("read a plainly", ("get", "a")),
    plain("read k plainly", ("range", "k", "l")),
)
LONG = (
    transaction("swap a and m", ("get", "a"), ("get", "m"), ("set", "a", "m0"), ("set", "m", "a0")),
    transaction(
        "think twice", ("get", "a"), ("begin",), ("set", "a", "no"), ("rollback",), ("set", "b", "y")
    ),
    transaction("nest", ("begin",), ("set", "b", "n"), ("get", "b"), ("commit",), ("get", "a")),
    transaction(
        "clear k", ("set", "k9", "9"), ("range", "k", "l"), ("delete", "k9"), ("range", "j", "m")
    ),
)
BATCHES = (
    plain("add 1", ("add", "n", "1")),
    plain("add 10", ("add", "n", "10")),
    plain("create n", ("create", "n", "7")),
    plain("clear k to o", ("clear", "k", "o")),
    plain("read n plainly", ("get", "n")),
    transaction("add 100 in a transaction", ("add", "n", "100")),
    transaction("read n, add 1000", ("get", "n"), ("add", "n", "1000")),
    transaction("set n blindly", ("set", "n", "5")),
    transaction("clear k to o, add k1", ("clear", "k", "o"), ("set", "k1", "1")),
    transaction("create n, read k to o", ("create", "n", "8"), ("range", "k", "o")),
)
#: The clock: after its step, the key of EXPIRING ends.
CLOCK = plain("e expires", ("expire", "e"))
EXPIRIES = (
    plain("copy e to b", ("copy", "e", "b")),
    plain("set b plainly", ("set", "b", "b4")),
    plain("read e plainly", ("get", "e")),
    plain("read b to f plainly", ("range", "b", "f")),
    plain("delete e plainly", ("delete", "e")),
    plain("create e", ("create", "e", "e1")),
    plain("clear e", ("clear", "e", "f")),
)
EXPIRIES_IN_TRANSACTIONS = (
    transaction("read e, write b", ("get", "e"), ("set", "b", "b1")),
    transaction("read b, read e", ("get", "b"), ("get", "e")),
    transaction("read b to f, write c", ("range", "b", "f"), ("set", "c", "c1")),
    transaction("delete e", ("delete", "e")),
)


def interleavings(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every way to merge sequences of these lengths: at each point, whose step is next."""

    def rest(left: list[int]) -> Iterator[tuple[int, ...]]:
        if not any(left):
            yield ()
        for client, steps in enumerate(left):
            if steps:
                left[client] -= 1
                for tail in rest(left):
                    yield (client, *tail)
                left[client] += 1

    yield from rest(list(lengths))


def message(step: Step, ref: TransactionRef) -> Message[Any]:
    name, *arguments = step
    keys = [argument.encode() for argument in arguments]
    match name:
        case "get":
            return get(keys[0], ref)
        case "set":
            return put(keys[0], keys[1], ref)
        case "delete":
            return delete(keys[0], ref)
        case "range":
            return scan(keys[0], keys[1], transaction=ref)
        case "add":
            return batch(Increment(keys[0], int(keys[1])), transaction=ref)
        case "create":
            return put(keys[0], keys[1], ref, precondition=ABSENT)
        case "copy":
            return batch(Get(keys[0]), put(keys[1], b"copied"), transaction=ref)
        case "clear":
            return delete_range(keys[0], keys[1], ref)
        case "begin":
            return Begin(ref)
        case "rollback":
            return Rollback(ref)
    return Commit(ref)


def seen(step: Step, reply: RecordingReply[Any]) -> object:
    """What a client sees of an answer."""
    if isinstance(reply.error, KeyNotFound):
        return None
    if isinstance(reply.error, ChecksFailed):
        return "taken"
    if reply.error is not None:
        return reply.error
    if step[0] == "get":
        return None if reply.result is None else value_of(reply.result).decode()
    if step[0] == "copy":
        record = reply.result.results[0]
        return None if record is None else value_of(record).decode()
    if step[0] == "range":
        return [(key.decode(), value_of(record).decode()) for key, record in reply.result.items]
    if step[0] in ("add", "clear"):
        return reply.result.results
    return "ok"


class Run(NamedTuple):
    """What happened to each program: when it was sent and answered, what it saw, whether it took
    effect.
    """

    sent: dict[int, int]
    answered: dict[int, int]
    views: list[list[object]]
    through: list[bool]
    final: Data


def run(programs: Sequence[Program], schedule: Sequence[int], *, disk: bool) -> Run:
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    for key, value in START.items():
        harness.ask(put(key.encode(), value.encode()))
    expiring = EXPIRING if CLOCK in programs else {}
    for key, value in expiring.items():
        harness.ask(put(key.encode(), value.encode(), ttl=TTL))
    for client, program in enumerate(programs):
        if program.isolated:
            harness.ask(Open(f"t{client}"))
    journal.holding = disk
    replies: list[list[RecordingReply[Any]]] = [[] for _ in programs]
    sent: dict[int, int] = {}
    answered: dict[int, int] = {}
    time = [0]
    for client in schedule:
        time[0] += 1
        if client == len(programs):
            journal.release()
            harness.settle()
            continue
        program = programs[client]
        if program is CLOCK:
            harness.now += TTL
            sent[client] = time[0]
            continue
        if replies[client] and isinstance(replies[client][-1].error, TransactionConflict):
            continue
        step = program.steps[len(replies[client])]
        sent.setdefault(client, time[0])

        def note(client: int = client) -> None:
            answered[client] = time[0]

        reply: RecordingReply[Any] = RecordingReply(note)
        replies[client].append(reply)
        harness.owner.drain(
            harness.now,
            [(message(step, f"t{client}" if program.isolated else AUTOCOMMIT), reply, UNCOUNTED)],
        )
        harness.settle()
    time[0] += 1
    answered.update((client, time[0]) for client, program in enumerate(programs) if program is CLOCK)
    while journal.pending:
        journal.release()
        harness.settle()
    assert all(reply.answered for one in replies for reply in one)
    views: list[list[object]] = [
        ["ok"]
        if program is CLOCK
        else [seen(step, reply) for step, reply in zip(program.steps, one, strict=False)]
        for program, one in zip(programs, replies, strict=True)
    ]
    through = [not any(isinstance(view, BaseException) for view in one) for one in views]
    page = harness.ask(scan(limit=1000)).result
    final = {key.decode(): value_of(record).decode() for key, record in page.items}
    return Run(sent, answered, views, through, final)


def serial(program: Program, data: Data) -> tuple[list[object], Data]:
    """Run a program alone on a plain dict."""
    stack = [dict(data)]
    views: list[object] = []
    for step in program.steps:
        name, *arguments = step
        top = stack[-1]
        view: object = "ok"
        if name == "get":
            view = top.get(arguments[0])
        elif name == "set":
            top[arguments[0]] = arguments[1]
        elif name == "delete":
            view = "ok" if top.pop(arguments[0], None) is not None else None
        elif name == "range":
            view = [(key, top[key]) for key in sorted(top) if arguments[0] <= key < arguments[1]]
        elif name == "add":
            top[arguments[0]] = str(int(top.get(arguments[0], "0")) + int(arguments[1]))
            view = [int(top[arguments[0]])]
        elif name == "create":
            view = "taken" if arguments[0] in top else "ok"
            top.setdefault(arguments[0], arguments[1])
        elif name == "copy":
            view = top.get(arguments[0])
            top[arguments[1]] = "copied"
        elif name == "expire":
            # What was written since does not expire.
            if top.get(arguments[0]) == EXPIRING[arguments[0]]:
                del top[arguments[0]]
        elif name == "clear":
            found = [key for key in top if arguments[0] <= key < arguments[1]]
            for key in found:
                del top[key]
            view = [len(found)]
        elif name == "begin":
            stack.append(dict(top))
        elif name == "rollback":
            stack.pop()
        elif len(stack) > 1:
            stack[-2:] = [top]
        views.append(view)
    return views, stack[-1]


def explains(programs: Sequence[Program], order: Sequence[int], happened: Run) -> bool:
    """Does this serial order give what the programs that went through saw, and the final state? And
    did those that conflicted see one of its states until then?"""
    data = {**START, **(EXPIRING if CLOCK in programs else {})}
    states = [data]
    for client in order:
        views, data = serial(programs[client], data)
        if views != happened.views[client]:
            return False
        states.append(data)
    if data != happened.final:
        return False
    for client, program in enumerate(programs):
        if not happened.through[client]:
            views = happened.views[client]
            before = next(i for i, view in enumerate(views) if isinstance(view, BaseException))
            part = program._replace(steps=program.steps[:before])
            if not any(serial(part, state)[0] == views[:before] for state in states):
                return False
    return True


def check(programs: Sequence[Program], schedule: Sequence[int], *, disk: bool = False) -> Run:
    happened = run(programs, schedule, disk=disk)
    for one in happened.views:
        assert all(
            isinstance(view, TransactionConflict) for view in one if isinstance(view, BaseException)
        )
    went = [client for client in range(len(programs)) if happened.through[client]]
    in_time = [(a, b) for a in went for b in went if happened.answered[a] < happened.sent[b]]
    orders = [
        order
        for order in permutations(went)
        if all(order.index(a) < order.index(b) for a, b in in_time)
    ]
    assert any(explains(programs, order, happened) for order in orders), (
        f"no serial order explains {schedule} of {[program.name for program in programs]}: {happened}"
    )
    return happened


def name(programs: Sequence[Program]) -> str:
    return " | ".join(program.name for program in programs)


PAIRS = [*combinations_with_replacement(SHORT, 2), *combinations_with_replacement(LONG, 2)]
MIXED = [(short, long) for short in SHORT for long in LONG]
TRIPLES = [*combinations(SHORT[:5], 3), *combinations(BATCHES[1:7], 3)]


@pytest.mark.parametrize("programs", [*PAIRS, *MIXED, *product(BATCHES, SHORT[3:5])], ids=name)
def test_every_interleaving_of_a_pair_is_strictly_serializable(programs: tuple[Program, ...]) -> None:
    for schedule in interleavings([len(program.steps) for program in programs]):
        check(programs, schedule)


@pytest.mark.parametrize(
    "programs",
    [*combinations_with_replacement(SHORT, 2), *combinations_with_replacement(BATCHES, 2)],
    ids=name,
)
def test_every_interleaving_of_a_pair_and_the_disk_is_strictly_serializable(
    programs: tuple[Program, ...],
) -> None:
    for schedule in interleavings([*(len(program.steps) for program in programs), 2]):
        check(programs, schedule, disk=True)


@pytest.mark.parametrize(
    "programs",
    [
        *combinations(EXPIRIES, 3),
        *product(EXPIRIES[:4], EXPIRIES_IN_TRANSACTIONS),
    ],
    ids=name,
)
def test_every_interleaving_with_an_expiry_and_the_disk_is_strictly_serializable(
    programs: tuple[Program, ...],
) -> None:
    lengths = [*(len(program.steps) for program in programs), 1, 2]
    for schedule in interleavings(lengths):
        check((*programs, CLOCK), schedule, disk=True)


@pytest.mark.parametrize("programs", TRIPLES, ids=name)
def test_every_interleaving_of_a_triple_is_strictly_serializable(programs: tuple[Program, ...]) -> None:
    for schedule in interleavings([len(program.steps) for program in programs]):
        check(programs, schedule)


def test_an_outcome_that_no_serial_order_gives_is_refused_by_the_checker() -> None:
    skew = (SHORT[1], SHORT[2])
    honest = check(skew, [0, 1, 0, 1, 0, 1])
    assert honest.through == [True, False]
    both = honest._replace(
        views=[["a0", "ok", "ok"], [None, "ok", "ok"]],
        through=[True, True],
        final={**START, "a": "a2", "b": "b1"},
    )
    assert not any(explains(skew, order, both) for order in permutations((0, 1)))


def test_a_transaction_that_shares_no_key_with_another_never_conflicts() -> None:
    reader, writer = transaction("m", ("get", "m"), ("set", "m", "m1")), SHORT[0]
    for schedule in interleavings([len(reader.steps), len(writer.steps)]):
        assert check((reader, writer), schedule).through == [True, True]
