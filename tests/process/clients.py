"""Requests over real connections, and streams."""

import http.client
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from tests.process.servers import PATIENCE, Server

#: How a connection ends without an answer. (A time-out is no such end: it fails the test.)
CLOSED: Final = (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead)


class Answer(NamedTuple):
    """An answer. `revision` is -1 if it names none."""

    status: int
    revision: int
    body: Any


class Client:
    """One keep-alive connection. Every method may raise one of `CLOSED`."""

    def __init__(self, server: Server) -> None:
        self.connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
        #: of the answer that was received last
        self.headers: Mapping[str, str] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        within: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Send a request, perhaps within an isolated transaction."""
        inside = {} if within is None else {"Kvactor-Transaction": within}
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, text, {**headers, **inside})

    def receive(self) -> Answer:
        """Wait for the answer to what was sent."""
        response = self.connection.getresponse()
        text = response.read()
        revision = int(response.getheader("Kvactor-Revision", "-1"))
        self.headers = dict(response.getheaders())
        return Answer(response.status, revision, json.loads(text) if text else None)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        within: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Send a request, and wait for the answer."""
        self.send(method, path, body, within, headers)
        return self.receive()

    def set(self, key: str, value: object, within: str | None = None) -> Answer:
        """POST /set."""
        return self.ask("POST", "/set", {"key": key, "value": value}, within)

    def get(self, key: str) -> Answer:
        """GET /get/{key}."""
        return self.ask("GET", f"/get/{quote(key)}")

    def delete(self, key: str, within: str | None = None) -> Answer:
        """DELETE /delete/{key}."""
        return self.ask("DELETE", f"/delete/{quote(key)}", within=within)

    def open(self) -> str:
        """Open an isolated transaction; return its id."""
        id_: str = self.ask("POST", "/v1/transactions").body["id"]
        return id_

    def commit(self, within: str) -> Answer:
        """Commit an isolated transaction."""
        return self.ask("POST", f"/v1/transactions/{within}/commit")


class Event(NamedTuple):
    """One event of the feed: its id, and what its data says."""

    id: int
    data: Any


class Stream:
    """A connection that follows the changes after a revision. Reading may raise one of `CLOSED`."""

    def __init__(self, server: Server, since: int = 0) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(since)}
        self._connection.request("GET", "/v1/changes", headers=headers)
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self._fields: dict[str, str] = {}

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()
        self._connection.close()

    def line(self) -> Event | None:
        """Read a line; return the event that it ends, if it ends one."""
        line = self._response.readline().decode()
        if not line.endswith("\n"):
            raise ConnectionError("the stream has ended")
        name, _, text = line[:-1].partition(": ")
        if line != "\n":
            self._fields[name] = text
            return None
        fields, self._fields = self._fields, {}
        return Event(int(fields["id"]), json.loads(fields["data"])) if "data" in fields else None

    def events(self) -> Iterator[Event]:
        """Yield events, as they come."""
        while True:
            event = self.line()
            if event is not None:
                yield event
