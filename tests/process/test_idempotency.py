"""The same Idempotency-Key twice: one write and the same answer, at once, later, and after a crash."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.process.clients import Answer, Client
from tests.process.conftest import Start

Send = Callable[[Client], None]

ONCE = {"Idempotency-Key": "a payment"}


def put(client: Client) -> None:
    client.send("PUT", "/v1/kv/key", "value", headers=ONCE)


def delete(client: Client) -> None:
    client.send("DELETE", "/v1/kv/old", headers=ONCE)


def delete_range(client: Client) -> None:
    client.send("DELETE", "/v1/kv?prefix=ol", headers=ONCE)


def batch(client: Client) -> None:
    operations: list[dict[str, Any]] = [
        {"op": "increment", "key": "count"},
        {"op": "get", "key": "old"},
        {"op": "range", "limit": 1},
        {"op": "delete", "key": "old"},
    ]
    client.send("POST", "/v1/batch", {"operations": operations}, headers=ONCE)


def seed(client: Client) -> None:
    client.send("POST", "/set", {"key": "key", "value": "value"}, headers=ONCE)


def told(client: Client) -> tuple[int, Any, str | None]:
    """Return what an answer says of the write."""
    answer: Answer = client.receive()
    return answer.status, answer.body, client.headers.get("ETag")


@pytest.mark.parametrize("send", [put, delete, delete_range, batch, seed])
def test_a_write_sent_again_is_done_once_and_answered_alike_across_a_kill(
    start: Start, send: Send
) -> None:
    server = start()
    with Client(server) as client, Client(server) as other:
        assert client.set("old", 1).revision == 1
        # Both are under way at once.
        send(client)
        send(other)
        first = told(client)
        assert first[0] in {200, 201, 204}
        assert told(other) == first
        send(client)
        assert told(client) == first
        assert client.ask("GET", "/v1/status").revision == 2
    server.kill()
    server = start()
    assert server.revision == 2
    with Client(server) as client:
        send(client)
        assert told(client) == first
        other_payload = client.ask("PUT", "/v1/kv/key", "another", headers=ONCE)
        assert (other_payload.status, other_payload.body["code"]) == (422, "idempotency_key_reused")
        assert client.ask("GET", "/v1/status").revision == 2
