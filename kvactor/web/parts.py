"""What may have chunks of a body in it is parsed in parts, one of all connections in a turn of the
loop: aiohttp has several calls for each chunk, and 256 KiB may hold 40,000 of them.

The rule: what is not parsed yet counts, and reading pauses.
"""

import asyncio
from typing import Any, Final

from aiohttp import web

from kvactor.core.memory import Lease
from kvactor.errors import Overloaded
from kvactor.web.ending import EndingHandler, Refusals

#: Bytes of chunked bodies that are parsed at a time: about 5 milliseconds at worst.
PART: Final = 8 * 1024


class PartsHandler(EndingHandler):
    """A connection that parses in parts what may take long."""

    __slots__ = ("_at_once", "_chunked", "_held_back", "_parts", "_unparsed", "_waits_for_turn")

    def __init__(self, server: Refusals, lease: Lease, manager: web.Server, **limits: Any) -> None:
        super().__init__(server, lease, manager, **limits)
        #: is the body that arrives one in chunks?
        self._chunked = False
        #: a chunk of up to so many bytes is parsed at once; none while others wait
        self._at_once = PART
        #: what has arrived and has to be parsed in parts, and where it is counted
        self._unparsed = memoryview(b"")
        self._parts: Lease | None = None
        self._waits_for_turn = False
        #: Does it read no more until it has turned to the last request that has arrived?
        self._held_back = False

    def _in_parts(self, data: bytes) -> bool:
        """Parse a chunk in parts, if there may be chunks of a body in it."""
        chunked = self._chunked and self._arriving is not None
        if not (chunked or self._unparsed or self._head or b"chunked" in data.lower()):
            return False
        self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
        self._parse_part()
        return True

    def _parse_part(self, turn: asyncio.Future[None] | None = None) -> None:
        """Parse a part in a turn, and keep the others for later ones. It has waited for `turn`."""
        if turn is not None:
            self._waits_for_turn = False
        if not self._unparsed:
            return
        if self._waits_for_turn or self._held_back or self._reading_paused:
            self._keep_parts()
            return
        if turn is None and (turn := self._server.turnstile.enter()) is not None:
            self._waits_for_turn = True
            turn.add_done_callback(self._parse_part)
            self._keep_parts()
            return
        part, self._unparsed = bytes(self._unparsed[:PART]), self._unparsed[PART:]
        self._at_once = PART
        self.data_received(part)
        if self._unparsed:
            self._parse_part()
        else:
            self._forget_parts()

    def _keep_parts(self) -> None:
        """Count what is not parsed yet, and read no more until it is."""
        self._at_once = 0
        if self._parts is None:
            self._parts = self._lease.another()
        if not self._buffer_paused:
            self._pause_reading_for_buffer()
        try:
            self._parts.resize(len(self._unparsed))
        except Overloaded as error:
            self._refuse(error)

    def _forget_parts(self) -> None:
        self._unparsed, self._at_once = memoryview(b""), PART
        if self._parts is not None:
            self._parts.close()
            self._parts = None
        if self._buffer_paused and not self._held_back:
            self._resume_reading_for_buffer()
