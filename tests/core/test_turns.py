"""Turns: clients share the owner's time by deficit round robin."""

from kvactor.core.memory import Client
from kvactor.core.turns import QUANTUM, Turns

ONE, OTHER = Client(), Client()


def served(turns: Turns[str], costs: dict[str, int]) -> list[str]:
    order = []
    while turns.size:
        message = turns.next()
        order.append(message)
        turns.charge((ONE if message[0] == "a" else OTHER, False), costs[message[0]])
    return order


def test_messages_of_one_client_keep_their_order() -> None:
    turns = Turns[str]()
    for number in range(5):
        turns.add((ONE, False), f"a{number}")
    assert served(turns, {"a": QUANTUM}) == [f"a{number}" for number in range(5)]


def test_a_client_with_expensive_messages_waits_for_one_with_cheap_messages() -> None:
    turns = Turns[str]()
    for number in range(10):
        turns.add((ONE, False), f"a{number}")
    for number in range(30):
        turns.add((OTHER, False), f"b{number}")
    order = served(turns, {"a": 10 * QUANTUM, "b": QUANTUM})
    # One expensive message, and then as much work of the other client, and so on.
    assert order[order.index("a0") : order.index("a1")] == ["a0", *(f"b{n}" for n in range(1, 11))]


def test_a_client_with_many_messages_delays_another_one_by_one_quantum() -> None:
    turns = Turns[str]()
    for number in range(1000):
        turns.add((ONE, False), f"a{number}")
    turns.next()
    turns.charge((ONE, False), QUANTUM)
    turns.add((OTHER, False), "b")
    assert turns.next() == "b"


def test_a_client_s_long_messages_do_not_delay_its_short_ones() -> None:
    turns = Turns[str]()
    turns.add((ONE, True), "long")
    turns.next()
    turns.add((ONE, True), "long")
    turns.add((ONE, False), "short")
    turns.charge((ONE, True), 50 * QUANTUM)
    assert turns.next() == "short"


def test_debts_are_forgotten_when_nothing_waits() -> None:
    turns = Turns[str]()
    turns.add((ONE, False), "a")
    turns.next()
    turns.charge((ONE, False), 1000 * QUANTUM)
    turns.add((ONE, False), "a")
    for _ in range(3):
        turns.add((OTHER, False), "b")
    assert served(turns, {"a": QUANTUM, "b": QUANTUM}) == ["b", "a", "b", "b"]


def test_all_messages_are_taken_out_once() -> None:
    turns = Turns[str]()
    turns.add((ONE, False), "a")
    turns.add((OTHER, True), "b")
    assert sorted(turns.take_all()) == ["a", "b"]
    assert turns.size == 0
    assert turns.take_all() == []
