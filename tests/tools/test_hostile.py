"""`kvactor stress --hostile` without a server: its goals, its table, its verdict, and how attacks reach
their target.
"""

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import msgspec
import pytest

from kvactor.tools.hostile.__main__ import INCONCLUSIVE, MISSED, OK, attacks
from kvactor.tools.hostile.attacks import HONEST
from kvactor.tools.hostile.contention import HOT, Contended
from kvactor.tools.hostile.report import COLUMNS, HEAD, MEMORY, REMAINS, broken, missed, row
from kvactor.tools.hostile.run import Measured, VictimsFailed
from kvactor.tools.hostile.target import SOURCE, Target
from kvactor.tools.hostile.victims import Latencies

MET = Measured(
    name="attack",
    seconds=1.0,
    latencies=Latencies([1.0] * 100, [1.0] * 100, {}, 200),
    idle=100_000_000,
    peak=150_000_000,
    afterwards=120_000_000,
    answers=Counter({"ok": 3, "503 overloaded": 2}),
    log="",
    alive=True,
)


def measured(**changes: Any) -> Measured:
    return msgspec.structs.replace(MET, **changes)


def victims(**changes: Any) -> Measured:
    return measured(latencies=msgspec.structs.replace(MET.latencies, **changes))


# -- goals --


def test_an_attack_that_does_no_harm_misses_no_goal() -> None:
    assert missed(MET) == []


@pytest.mark.parametrize(
    ("one", "goals"),
    [
        (victims(get=[1.0] * 98 + [30.0] * 2), ["p99"]),
        (victims(put=[1.0] * 98 + [30.0] * 2), ["p99"]),
        (victims(put=[1.0] * 99 + [200.0]), ["worst"]),
        (victims(planned=223), ["served"]),
    ],
)
def test_goals_that_depend_on_the_machine(one: Measured, goals: list[str]) -> None:
    assert (missed(one), broken(one)) == (goals, [])


@pytest.mark.parametrize(
    ("one", "goals"),
    [
        (victims(failures={"503 overloaded": 1}), ["victims"]),
        (victims(get=[], planned=100), ["victims"]),
        (measured(unreached=["streams"]), ["attacked"]),
        (measured(peak=MEMORY), ["memory"]),
        (measured(afterwards=MET.idle + REMAINS), ["remains"]),
        (measured(log="." * 20_000), ["log"]),
        (measured(alive=False), ["alive"]),
    ],
)
def test_goals_that_no_busy_machine_excuses(one: Measured, goals: list[str]) -> None:
    assert missed(one) == broken(one) == goals


def test_victims_that_send_nothing_are_not_well() -> None:
    assert missed(measured(latencies=Latencies(planned=200))) == ["served", "victims"]


# -- the table --


def test_a_row_has_a_field_under_each_column_and_the_goals_stand_below_their_names() -> None:
    names, goals = HEAD.splitlines()
    shown = row(victims(get=[], failures={"OSError": 1}, planned=100))
    assert shown.endswith("3 x ok, 2 x 503 overloaded; victims: 1 x OSError")
    for line in (goals, shown):
        fields, ends = line.split(), [names.index("GET p99") + 7, names.index("served") + 6]
        assert [line[end - 1] != " " and line[end] == " " for end in ends] == [True, True], fields
    assert shown.split()[1:6] == ["-", "-", "1.0", "1.0", "99%"]


def test_honest_clients_are_shown_and_not_judged() -> None:
    assert row(measured(alive=False), judged=False).split()[9] == "-"


def test_help_explains_each_goal() -> None:
    everything = measured(
        latencies=Latencies([200.0] * 2, [], {"x": 1}, 200),
        peak=MEMORY,
        afterwards=MET.idle + REMAINS,
        log="." * 20_000,
        alive=False,
        unreached=["one"],
    )
    assert [goal for goal in missed(everything) if f"({goal})" not in COLUMNS] == []
    assert len(missed(everything)) == 9


# -- the verdict --

QUIET, NOISY = measured(name="nothing"), victims(get=[150.0] * 100)


class Script:
    """Attacks whose results are known: of `nothing`, in turn, and of the others."""

    def __init__(self, *floors: Measured, **results: Measured) -> None:
        self._floors = iter(floors)
        self._results = results

    def __call__(self, names: Sequence[str], seconds: float) -> Measured:
        return self._results[names[0]] if names else next(self._floors)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (Script(QUIET, a=MET, b=MET), OK),
        (Script(NOISY), INCONCLUSIVE),
        (Script(QUIET, a=measured(alive=False), b=MET), MISSED),
        (Script(QUIET, QUIET, a=NOISY, b=MET), MISSED),
        (Script(QUIET, NOISY, a=NOISY, b=MET), INCONCLUSIVE),
        (Script(QUIET, QUIET, a=NOISY, b=NOISY), MISSED),
        (Script(QUIET, NOISY, a=NOISY, b=measured(alive=False)), MISSED),
    ],
)
def test_a_machine_that_is_too_busy_is_told_from_a_missed_goal(script: Script, status: int) -> None:
    assert attacks([["a"], ["b"]], 1.0, script) == status


def test_the_table_begins_with_its_duration_and_says_when_the_machine_may_be_to_blame(
    capsys: pytest.CaptureFixture[str],
) -> None:
    attacks([["a"], ["b"]], 5.0, Script(QUIET, NOISY, a=NOISY, b=MET))
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("2 attacks, about 45 s")
    assert [line.split()[0] for line in lines] == [
        *("attack", "goal", "nothing", "attack", "attack", "attack"),
        "inconclusive:",  # a has missed, and so does nothing; b is ok
    ]


def test_nothing_is_measured_again_after_every_ten_attacks_of_which_one_has_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plans = [["a"]] * 12 + [["b"]] * 10
    assert attacks(plans, 1.0, Script(QUIET, QUIET, NOISY, a=NOISY, b=MET)) == MISSED
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]]
    assert names.count("nothing") == 2
    assert names[11] == "nothing"
    assert names[-4] == "attack"


def test_an_attack_whose_victims_fail_has_no_row_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def attack(names: Sequence[str], seconds: float) -> Measured:
        if names == ["a"]:
            raise VictimsFailed("the victims have ended with status -9")
        return measured(name="+".join(names) or "nothing")

    assert attacks([["a"], ["b"]], 1.0, attack) == INCONCLUSIVE
    *_, failed, last = capsys.readouterr().out.splitlines()
    assert failed == "inconclusive: a: the victims have ended with status -9"
    assert last.split()[0] == "b"


def test_honest_clients_miss_no_goal() -> None:
    name = next(iter(HONEST))
    assert attacks([[name]], 1.0, Script(QUIET, **{name: NOISY})) == OK


# -- the target --


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def target_at(listener: socket.socket, seconds: float) -> Target:
    host, port = listener.getsockname()
    return Target(host, port, seconds)


def answer(listener: socket.socket, *answers: bytes) -> Thread:
    """Answer so many connections with bytes, and close each."""

    def serve() -> None:
        for one in answers:
            connection, (host, _) = listener.accept()
            with connection:
                assert host == SOURCE
                connection.recv(1000)
                connection.sendall(one)

    thread = Thread(target=serve)
    thread.start()
    return thread


FULL = b"HTTP/1.1 503 S\r\nContent-Length: 21\r\n\r\n" + b'{"code":"overloaded"}'


def test_answers_are_counted_by_their_codes_and_make_an_attack_reach_its_target(
    listener: socket.socket,
) -> None:
    target = target_at(listener, 0)
    assert not target.reached
    thread = answer(listener, FULL)
    assert target.ask("GET", "/a").status == 503
    thread.join()
    assert target.answers == {"503 overloaded": 1}
    assert target.reached


def test_an_attack_whose_connections_are_closed_goes_on_and_has_not_reached_its_target(
    listener: socket.socket,
) -> None:
    target, tries = target_at(listener, 60), 3
    thread = answer(listener, *[b""] * tries)

    def step() -> None:
        if target.answers.total() == tries - 1:
            target.end = 0.0
        target.ask("GET", "/a")

    target.repeat(step)
    thread.join()
    assert target.answers.total() == tries
    assert set(target.answers) <= {"Closed", "ConnectionResetError"}
    assert not target.reached


def test_what_is_no_http_does_not_end_an_attack(listener: socket.socket) -> None:
    target = target_at(listener, 60)
    thread = answer(listener, b"what?\r\n\r\n")

    def step() -> None:
        target.end = 0.0
        target.ask("GET", "/a")

    target.repeat(step)
    thread.join()
    assert target.answers == {"ValueError": 1}


def test_work_at_once_fails_if_all_of_it_fails() -> None:
    target, done = Target("127.0.0.1", 0, 1), []

    def fail() -> None:
        raise ConnectionError

    target.at_once([fail, lambda: done.append(1)])
    assert done == [1]
    with pytest.raises(ConnectionError):
        target.at_once([fail, fail])


# -- contention --


def test_contention_counts_what_was_acknowledged_and_the_longest_time_without_a_commit() -> None:
    found = Contended(10.0, [[1.0, 4.0], [9.0]], [0, 0], added=Counter({HOT[0]: 5}))
    assert found.gaps == [6.0, 9.0]
    assert found.expected == {"counter/0": 2, "counter/1": 1, HOT[0]: 8, **dict.fromkeys(HOT[1:], 3)}
    assert found.missed == ["commits", "exactly once"]
    met = Contended(4.0, [[1.0]], [0], held={"counter/0": 1, **dict.fromkeys(HOT, 1)})
    assert met.missed == []
