"""The mutants that break P8 on a connection: what arrives is counted, bounded, and given back."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

_CONNECTION: Final = "kvactor/web/connection.py"
_ENDING: Final = "kvactor/web/ending.py"
_ARRIVING: Final = ("tests/web/test_arriving.py",)

MUTANTS: Final = (
    Mutant(
        "p8-a-gone-client-keeps-its-place",
        "A long poll whose client is gone waits on, and keeps its place among the subscribers.",
        edits=(Edit(_CONNECTION, "Connection.connection_lost", find="self.waits.leave()", replace=""),),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-the-end-of-a-client-drops-its-last-request",
        "A client that ends its side after two requests gets the response to one of them.",
        edits=(
            Edit(
                _ENDING,
                "EndingHandler.eof_received",
                find="not self._closes_after_last()",
                replace="True",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-gone-client-is-not-looked-for",
        "A client that goes while nothing is read from it is noticed only after its request.",
        edits=(
            Edit(
                "kvactor/web/server.py",
                "Connections._end_waits",
                find="connection.waits.leave()",
                replace="",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-what-is-behind-a-wait-waits-as-long",
        "A request behind a long poll waits, and is held, until the end of that.",
        edits=(
            Edit(
                "kvactor/web/server.py",
                "Connections._end_waits",
                find="connection.waits.hurry()",
                replace="pass",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-who-was-hurried-once-never-waits-again",
        "After a request that waited behind another, each long poll of the connection ends at once.",
        edits=(
            Edit(
                "kvactor/web/server.py",
                "Connections.resumed",
                find="connection.waits.hurried = False",
                replace="pass",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-gone-client-is-looked-for-on-linux-alone",
        "macOS has no POLLRDHUP: there, no gone client is noticed.",
        edits=(
            Edit(
                "kvactor/web/server.py",
                "_has_left",
                find='getattr(select, "POLLRDHUP", select.POLLHUP)',
                replace="select.POLLRDHUP",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-connections-are-swept-until-one-fails",
        "After a connection that cannot be looked at, no slow or gone client is looked for again.",
        edits=(
            Edit(
                "kvactor/web/server.py",
                "Connections._sweep",
                find="""
                    try:
                        self._end_slow()
                        self._end_waits()
                    finally:
                        self._sweeping = bool(self._slow or self._unread)
                        if self._sweeping:
                            self._loop.call_later(self._pause, self._sweep)
                """,
                replace="""
                    self._end_slow()
                    self._end_waits()
                    self._sweeping = bool(self._slow or self._unread)
                    if self._sweeping:
                        self._loop.call_later(self._pause, self._sweep)
                """,
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-body-counts-after-it-is-read",
        "A body counts once it is whole, not as it arrives.",
        edits=(
            Edit(
                _CONNECTION,
                "Connection._body_has_room",
                find="self._counting.acquire(size)",
                replace="self._counting.acquire(0)",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-broken-body-waits-for-the-collector",
        "A body that is broken off stays in memory, uncounted, until the collector of cycles runs.",
        edits=(
            Edit(
                "kvactor/web/body_reader.py",
                "BodyReader._broken",
                find="error.__traceback__ = None",
                replace="",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-head-has-no-bound",
        "Each line of a head has a bound, and all lines together have none.",
        edits=(
            Edit(
                _CONNECTION,
                "Connection._head_has_room",
                find="self._head > MAX_HEAD",
                replace="self._head > 1 << 30",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-refused-connection-is-parsed-on",
        "After a malformed head, what follows is parsed, and each chunk is one more error.",
        edits=(Edit(_ENDING, "EndingHandler._refuse", find="self._parser = None", replace=""),),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-refused-body-is-waited-for",
        "A body whose rest is refused is waited for until body_timeout.",
        edits=(
            Edit(
                _ENDING,
                "EndingHandler._refuse",
                find="""
                    if self._arriving is not None:
                        self._abandon(self._arriving, error)
                        return
                """,
                replace="",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-refused-client-is-listened-to-for-ever",
        "What a refused client still sends is dropped without a bound.",
        edits=(
            Edit(
                _ENDING,
                "EndingHandler._drop",
                find="self._dropped > LINGER_SIZE",
                replace="self._dropped < 0",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-heads-are-not-counted",
        "The bytes of a head under way do not count in the account of memory.",
        edits=(
            Edit(
                _CONNECTION,
                "Connection._head_has_room",
                find="not self._count(size)",
                replace="not self._count(0)",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-heads-are-not-given-back",
        "The bytes of a head count until the connection ends.",
        edits=(
            Edit(_CONNECTION, "Connection._heads_have_ended", find="self._lease.release()", replace=""),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-reading-does-not-pause",
        "What arrives behind a request in progress is counted, and reading goes on.",
        edits=(
            Edit(
                _CONNECTION,
                "Connection._hold_back",
                find="self._pause_reading_for_buffer()",
                replace="",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-reading-does-not-go-on",
        "A connection that has turned to the last of its requests reads no more.",
        edits=(
            Edit(
                _CONNECTION,
                "Connection._resume_reading_if_drained",
                find="self._resume_reading_for_buffer()",
                replace="pass",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-what-is-held-back-counts-twice",
        "A chunk with more than one request counts as the next head, too.",
        edits=(Edit(_CONNECTION, "Connection._heads_have_ended", find="not behind", replace="True"),),
        killed_by=_ARRIVING,
    ),
)
