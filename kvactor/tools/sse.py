"""Server-sent events from bytes, without a socket (sans-IO).

The format is the HTML standard's, "Interpreting an event stream". An event that is cut off by the end
of the stream is dropped, as the standard says.
"""

import re
from typing import Final

import msgspec

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class Event(msgspec.Struct, frozen=True):
    """An event. `id` is that of the newest event that had one; empty: none had."""

    data: str
    id: str = ""
    event: str = "message"


class EventParser:
    """Collects the events of one stream."""

    def __init__(self) -> None:
        self._id = ""
        self._event = ""
        self._data: list[str] = []
        #: the line that has not ended
        self._line = b""
        self._after_return = False

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes that have arrived, and return the events that they complete.

        Raises `UnicodeDecodeError` for bytes that are not UTF-8.
        """
        if self._after_return and data:
            data = data.removeprefix(b"\n")
            self._after_return = False
        first, *lines = _LINE_END.split(data)
        self._line += first
        events: list[Event] = []
        for line in lines:
            self._take(self._line.decode(), events)
            self._line = line
        self._after_return = data.endswith(b"\r")
        return events

    def _take(self, line: str, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event("\n".join(self._data), self._id, self._event or "message"))
            self._event, self._data = "", []
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "event":
            self._event = value
