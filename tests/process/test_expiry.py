"""A key's end by itself, by the real clock: at once for readers, as a delete in the feed, and across
a restart.
"""

import time
from datetime import datetime

from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.servers import Server, until


def put(client: Client, key: str) -> float:
    """Store a key for one second; return when it ends, by the server's own account."""
    assert client.ask("PUT", f"/v1/kv/{key}?ttl=1", "value").status == 201
    assert client.ask("HEAD", f"/v1/kv/{key}").status == 200
    return datetime.fromisoformat(client.headers["Kvactor-Expires-At"]).timestamp()


def ends_at(client: Client, key: str, moment: float) -> None:
    """Read a key until it has ended, and assert that it was there until that moment, and not after."""

    def gone() -> bool:
        asked = time.time()
        status = client.ask("HEAD", f"/v1/kv/{key}").status
        assert status in {200, 404}
        if status == 200:
            # By the milliseconds that the server counts in.
            assert int(asked * 1000) <= moment * 1000
        else:
            assert time.time() >= moment
        return status == 404

    until(gone, "the key's end")


def comes_as_a_delete(server: Server, key: str) -> None:
    """Expect that a revision of the feed deletes the key, and nothing else."""
    with Client(server) as client:

        def deleted() -> bool:
            revisions = client.ask("GET", "/v1/changes?since=0").body["revisions"]
            return [{"key": key, "deleted": True}] in [one["changes"] for one in revisions]

        until(deleted, f"the deletion of {key} in the feed")


def test_a_key_ends_for_readers_at_once_and_then_in_the_feed(start: Start) -> None:
    server = start()
    with Client(server) as client:
        moment = put(client, "a")
        ends_at(client, "a", moment)
        assert client.ask("GET", "/v1/kv").body["items"] == []
    comes_as_a_delete(server, "a")


def test_a_key_ends_across_a_kill_and_a_restart(start: Start) -> None:
    server = start()
    with Client(server) as client:
        moment = put(client, "a")
    server.kill()
    server = start()
    with Client(server) as client:
        ends_at(client, "a", moment)
    comes_as_a_delete(server, "a")


def test_a_key_that_ended_while_the_server_was_down_is_not_there_when_it_is_up(
    start: Start,
) -> None:
    server = start()
    with Client(server) as client:
        moment = put(client, "a")
    assert server.stop() == 0
    until(lambda: time.time() > moment, "the key's end")
    server = start()
    with Client(server) as client:
        assert client.ask("GET", "/v1/kv/a").status == 404
        assert client.ask("GET", "/v1/kv").body["items"] == []
    comes_as_a_delete(server, "a")
