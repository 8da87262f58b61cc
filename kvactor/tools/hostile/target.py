"""How attacks reach the server: blocking sockets from an address of the attackers' own."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import msgspec

from kvactor.tools.http import NO_HEADERS, ClientProtocol, Response, encode_request

#: The attackers' address: the server counts clients by address. All of 127/8 is loopback.
SOURCE: Final = "127.0.0.2"

#: Seconds for which an attack waits for a response.
TIMEOUT: Final = 60.0


class Target:
    """The server under attack, until `end`, a time of `time.monotonic`."""

    def __init__(self, host: str, port: int, end: float) -> None:
        self.host = host
        self.port = port
        self.end = end
        #: what the server has answered, by status and code
        self.answers: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        """Is the time of the attack over?"""
        return time.monotonic() >= self.end

    def connect(self) -> "Connection":
        """Open a connection. Raises `OSError`."""
        return Connection(self)

    def ask(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> Response:
        """Send one request on a connection of its own. Raises `OSError`."""
        with self.connect() as connection:
            return connection.ask(method, path, body, headers)

    def at_once(self, work: Sequence[Callable[[], object]], threads: int = 50) -> None:
        """Do all of it at once, as far as there are threads. What is refused does not matter."""
        with ThreadPoolExecutor(threads) as pool:
            for one in [pool.submit(each) for each in work]:
                with suppress(OSError):
                    one.result()


class Connection:
    """A connection of an attacker's."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.socket = socket.create_connection(
            (target.host, target.port), TIMEOUT, source_address=(SOURCE, 0)
        )
        self._protocol = ClientProtocol()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        """Send a request, and do not wait. Raises `OSError`."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        self.socket.sendall(encode_request(method, path, content, headers))

    def ask(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> Response:
        """Send a request, and return its response. Raises `OSError`."""
        protocol = self._protocol
        protocol.expect(method)
        with suppress(ConnectionError):  # it may be refused before all of it is sent
            self.send(method, path, body, headers)
        while (response := protocol.response()) is None:
            data = self.socket.recv(1 << 18)
            if data:
                protocol.receive(data)
            else:
                protocol.receive_end()
        answers = self._target.answers
        answers["ok" if response.ok else f"{response.status} {response.code}"[:60]] += 1
        return response
