"""Counters: what many clients increment at once comes to exactly what they were told, however they
do it. `KVACTOR_TEST_INCREMENTS=10000` is what the promise is about.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import random

import pytest

from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.servers import Server
from tests.sizes import size

CLIENTS = 50
INCREMENTS = size("increments")

#: Tries after which one increment has failed: each that fails means that another was done.
TRIES = CLIENTS * INCREMENTS

#: Increments once, and returns how many tries that took.
Way = Callable[[Client], int]


def back_off(tries: int) -> None:
    """Leave the counter to others for a while, as clients should who have met one."""
    time.sleep(random() * min(0.001 * 2**tries, 1))


def in_a_batch(client: Client) -> int:
    operations = [{"op": "increment", "key": "counter"}]
    done = client.ask("POST", "/v1/batch", {"operations": operations})
    assert done.status == 200
    return 1


def with_if_match(client: Client) -> int:
    for tries in range(1, TRIES):
        got = client.ask("GET", "/v1/kv/counter")
        if got.status == 404:
            value, condition = 0, {"If-None-Match": "*"}
        else:
            value, condition = got.body, {"If-Match": client.headers["ETag"]}
        headers = {"Content-Type": "application/json", **condition}
        done = client.ask("PUT", "/v1/kv/counter", value + 1, headers=headers)
        if done.status in {200, 201}:
            return tries
        assert done.status == 412
        back_off(tries)
    raise TimeoutError("the precondition never held")


def in_a_transaction(client: Client) -> int:
    for tries in range(1, TRIES):
        transaction = client.open()
        got = client.ask("GET", "/v1/kv/counter", transaction=transaction)
        assert got.status in {200, 404}
        put = client.set("counter", got.body + 1 if got.status == 200 else 1, transaction)
        assert put.status in {200, 409}
        # A commit ends it, conflict or not.
        done = client.commit(transaction)
        if done.status == 200:
            return tries
        assert done.status == 409
        back_off(tries)
    raise TimeoutError("every commit met a conflict")


def count(server: Server, way: Way) -> int:
    """Increment `INCREMENTS` times by all clients together; return how many tries it took."""
    # One iterator for all: `next` on it is atomic, so each number is taken once.
    numbers = iter(range(INCREMENTS))

    def work(numbers: Iterator[int]) -> int:
        with Client(server) as client:
            return sum(way(client) for _ in numbers)

    with ThreadPoolExecutor(CLIENTS) as clients:
        return sum(clients.map(work, [numbers] * CLIENTS))


@pytest.mark.parametrize("way", [in_a_batch, with_if_match, in_a_transaction])
def test_a_counter_that_many_increment_at_once_misses_and_doubles_none(
    start: Start, way: Way, figure: Callable[[str], None]
) -> None:
    server = start()
    began = time.monotonic()
    tries = count(server, way)
    took = time.monotonic() - began
    with Client(server) as client:
        counted = client.get("counter")
        assert counted.body == {"key": "counter", "value": INCREMENTS}
        assert counted.revision == INCREMENTS
    figure(
        f"{INCREMENTS} increments by {CLIENTS} clients, {way.__name__}: counted {INCREMENTS} in "
        f"{tries} tries, {took:.1f} s"
    )
