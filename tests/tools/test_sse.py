"""Server-sent events from bytes, by the rules of the HTML standard."""

import pytest

from kvactor.tools.sse import Event, EventParser

STREAM = (
    b": a comment\n\n"
    b"id: 1\ndata: one\n\n"
    b"data: two\r\ndata:  lines\r\n\r\n"
    b"id: 3\revent: other\rdata\r\r"
    b"event: nothing\nid: 4\nretry: 5\n\n"
    b'data:{"k": "\xc3\xa4"}\n\n'
    b"data: cut off\n"
)
EVENTS = [
    Event("one", "1"),
    Event("two\n lines", "1"),
    Event("", "3", "other"),
    Event('{"k": "ä"}', "4"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
def test_events_in_pieces_of_any_size_are_the_same(size: int) -> None:
    parser = EventParser()
    found = [
        event for at in range(0, len(STREAM), size) for event in parser.feed(STREAM[at : at + size])
    ]
    assert found == EVENTS


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        EventParser().feed(b"data: \xff\n\n")
