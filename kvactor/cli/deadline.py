"""The deadline of a stop: a process that cannot end by itself is ended, with status 1.

The rule: once a stop has begun, it ends, whatever the disk does. A stop waits for the threads of the
journal and of the tree, and they wait for the disk; so the loop's thread may be blocked, and a thread
of its own keeps the time. (A disk that hangs before, in the loop's thread, delays the beginning.)
Nothing that was acknowledged is lost: it is in the journal, and the next start recovers it.
"""

import logging
import os
from collections.abc import Callable
from threading import Timer
from types import TracebackType

log = logging.getLogger(__package__)

#: Seconds that the last line of the log may take.
LOG_TIMEOUT = 1.0


class ExitDeadline:
    """Ends the process, unless the `with` block is left in time once `start` has been called."""

    def __init__(self) -> None:
        self._timer: Timer | None = None

    def start(self, seconds: float, waiting_for: Callable[[], str]) -> None:
        """End the process after so many seconds; the log names what `waiting_for` returns then."""
        self._timer = Timer(seconds, _end, (seconds, waiting_for))
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> "ExitDeadline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _end(seconds: float, waiting_for: Callable[[], str]) -> None:
    # The log may be on the disk that hangs.
    last = Timer(LOG_TIMEOUT, os._exit, (1,))
    last.daemon = True
    last.start()
    try:
        log.critical(
            "the stop has not finished after %g seconds, the process ends at once; it waited for %s",
            seconds,
            waiting_for(),
        )
    finally:
        os._exit(1)
