"""Bounds on what requests use together: followers of the feed. (`waits`: time. `core.memory`: memory.)

The rule: a request gives back in a `finally` what it took.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kvactor.errors import TooManySubscribers

#: Bytes that a client has to take within `write_timeout`, unless it takes all; streams are written in
#: chunks of this size.
CHUNK_SIZE = 64 * 1024


class SubscriberLimit:
    """The number of requests that follow the changes."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.count = 0

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        """Count a request while it follows. Raises `TooManySubscribers`."""
        if self.count >= self._maximum:
            raise TooManySubscribers(
                f"{self._maximum} requests follow the changes already. Try again later."
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
