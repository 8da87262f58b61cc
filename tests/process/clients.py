"""Requests and streams of tests: connections of `kvactor.tools`, with the calls that tests repeat."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from kvactor.tools import sse
from kvactor.tools.connections import Connection, EventStream
from kvactor.tools.http import NO_HEADERS
from tests.process.servers import PATIENCE, Server

#: The error of a connection that ends without an answer. (A timeout fails the test.)
CLOSED: Final = (ConnectionError,)


class Answer(NamedTuple):
    """An answer. `revision` is 0 if it names none."""

    status: int
    revision: int
    body: Any


class Client:
    """One keep-alive connection. Every method may raise one of `CLOSED`."""

    def __init__(self, server: Server) -> None:
        self.connection = Connection(server.host, server.port, PATIENCE)
        #: of the answer that was received last
        self.headers: Mapping[str, str] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        transaction: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """Send a request, perhaps inside an isolated transaction."""
        inside = {} if transaction is None else {"Kvactor-Transaction": transaction}
        text = b"" if body is None else json.dumps(body).encode()
        self.connection.send(method, path, text, {**headers, **inside})

    def receive(self) -> Answer:
        """Wait for the answer to the request that was sent."""
        response = self.connection.receive()
        self.headers = response.headers
        return Answer(
            response.status, response.revision, json.loads(response.body) if response.body else None
        )

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        transaction: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Answer:
        """Send a request, and wait for the answer."""
        self.send(method, path, body, transaction, headers)
        return self.receive()

    def set(self, key: str, value: object, transaction: str | None = None) -> Answer:
        """POST /set."""
        return self.ask("POST", "/set", {"key": key, "value": value}, transaction)

    def get(self, key: str) -> Answer:
        """GET /get/{key}."""
        return self.ask("GET", f"/get/{quote(key)}")

    def delete(self, key: str, transaction: str | None = None) -> Answer:
        """DELETE /delete/{key}."""
        return self.ask("DELETE", f"/delete/{quote(key)}", transaction=transaction)

    def open(self) -> str:
        """Open an isolated transaction; return its id."""
        id_: str = self.ask("POST", "/v1/transactions").body["id"]
        return id_

    def commit(self, transaction: str) -> Answer:
        """Commit an isolated transaction."""
        return self.ask("POST", f"/v1/transactions/{transaction}/commit")


class Event(NamedTuple):
    """An event of the feed: its id, and its data."""

    id: int
    data: Any


class Stream(EventStream):
    """A connection that follows the changes after a revision. Reading may raise one of `CLOSED`."""

    def __init__(self, server: Server, since: int = 0) -> None:
        super().__init__(
            server.host, server.port, target="/v1/changes", last_id=since, timeout=PATIENCE
        )

    def some(self, most: int) -> list[Event]:
        """Wait for at most so many bytes; return the events that they complete."""
        return [_decoded(event) for event in self.read(most)]

    def changes(self) -> Iterator[Event]:
        """Yield events as they come."""
        return map(_decoded, self.events())


def _decoded(event: sse.Event) -> Event:
    return Event(int(event.id), json.loads(event.data))
