"""How attacks reach the server: blocking connections from an address of the attackers' own."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from kvactor.tools.connections import Connection
from kvactor.tools.http import NO_HEADERS, Response

#: The attackers' address: the server counts clients by address. All of 127/8 is loopback.
SOURCE: Final = "127.0.0.2"

#: Seconds for which an attack waits for a response.
TIMEOUT: Final = 60.0


class Target:
    """The server, under one attack of so many seconds."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self.host = host
        self.port = port
        #: when the attack ends, a time of `time.monotonic`
        self.end = time.monotonic() + seconds
        self._halftime = self.end - seconds / 2
        self._active_at = 0.0
        #: what the server has answered, by status and code, and what went wrong, by its name
        self.answers: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        """Is the time of the attack over?"""
        return time.monotonic() >= self.end

    @property
    def reached(self) -> bool:
        """Has the attack reached the server in the second half of its time?"""
        return self._active_at >= self._halftime

    def note_active(self) -> None:
        """Note that the attack reaches the server now."""
        self._active_at = time.monotonic()

    def connect(self) -> Connection:
        """Open a connection. Raises `OSError`."""
        return Connection(self.host, self.port, TIMEOUT, SOURCE)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> Response:
        """Send one request on a connection of its own, and count the answer. Raises `OSError`, and
        `ValueError` if it is none.
        """
        with self.connect() as connection:
            with suppress(ConnectionError):  # it may be refused before all of it is sent
                connection.send(method, path, body, headers)
            response = connection.receive()
        self.answers["ok" if response.ok else f"{response.status} {response.code}"[:60]] += 1
        self.note_active()
        return response

    def repeat(self, step: Callable[[], object]) -> None:
        """Take a step again and again until the time is over, also if one fails."""
        while not self.over:
            try:
                step()
            except (OSError, ValueError) as error:
                self.answers[type(error).__name__] += 1
            else:
                self.note_active()

    def at_once(self, work: Sequence[Callable[[], object]], threads: int = 50) -> None:
        """Do all of it at once, as far as there are threads. Raises an error if all of it fails."""
        with ThreadPoolExecutor(threads) as pool:
            errors = [one.exception() for one in [pool.submit(each) for each in work]]
        failed = [error for error in errors if error is not None]
        if len(failed) == len(work):
            raise failed[0]
