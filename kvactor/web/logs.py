"""What clients choose, in the log: bounded, printable, and not more often than somebody reads.

The rule: text from a client goes through `shown` before it is logged or sent back, and what a client
can cause at will goes through a `Digest`.
"""

import asyncio
import logging
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

#: Characters of a client's text in one line, at most.
SHOWN: Final = 200

#: Lines a second of each kind; more are counted.
LINES: Final = 5

#: Seconds after which a line says how many more there were.
SUMMARY: Final = 1.0


def shown(text: str) -> str:
    """Return text in one line: at most `SHOWN` characters of it, all but printable ASCII escaped."""
    part = text[:SHOWN]
    if not (part.isascii() and part.isprintable()):
        part = part.encode("unicode_escape").decode("ascii")[: 2 * SHOWN]
    return part if len(text) <= SHOWN else f"{part}... ({len(text)} characters)"


class Digest:
    """Logs lines of one kind on the level info: the first `LINES` of a second, then their number."""

    def __init__(self, log: logging.Logger, kind: str) -> None:
        self._log = log
        self._kind = kind
        self._lines = 0

    def add(self, text: str) -> None:
        """Log a line, or count it. It needs a running loop."""
        self._lines += 1
        if self._lines == 1:
            asyncio.get_running_loop().call_later(SUMMARY, self._sum)
        if self._lines <= LINES:
            self._log.info("%s: %s", self._kind, text)

    def _sum(self) -> None:
        more, self._lines = self._lines - LINES, 0
        if more > 0:
            self._log.info("%s: %d more in %g s", self._kind, more, SUMMARY)


class AccessLogger(AbstractAccessLogger):
    """A line for each request, without the headers that say what the client likes to be called."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """See aiohttp; `time` is in seconds."""
        target = shown(request.raw_path)
        took = round(time * 1000)
        self.logger.info(
            '%s "%s %s" %d %d ms', request.remote, request.method, target, response.status, took
        )
