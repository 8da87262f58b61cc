"""What is known of one message while it is handled."""

import msgspec

from kvactor.core.memory import Lease
from kvactor.core.work import UNLIMITED, Work


class Context(Work, kw_only=True, gc=False):
    """The state of one message while it is handled, and its account of work.

    `now` is its time, in milliseconds since the epoch: expiry is judged at it. `depends_on` is the
    newest revision that its answer depends on; 0: none. `max_result_size` bounds the result of one
    range, in bytes, and `max_walk` what it walks. `lease` holds what its result takes. `exclusive`: see
    `Keyspace.enter_exclusive`. `waited_until` is until when it may wait for a transaction with
    priority, in milliseconds since the epoch; 0: it has not waited.
    """

    now: int
    lease: Lease
    depends_on: int = 0
    max_result_size: int = 0
    max_walk: int = UNLIMITED
    exclusive: bool = False
    waited_until: int = 0

    def depend_on(self, revision: int) -> None:
        """Note that the answer depends on `revision`."""
        self.depends_on = max(self.depends_on, revision)


class Page(msgspec.Struct, frozen=True):
    """Keys of a range, in order, with their records.

    `last` is the last key that was walked, if a bound has cut the page short there; None: there is no
    more. `work` are the units that it has walked.
    """

    items: list[tuple[bytes, bytes]]
    last: bytes | None
    work: int = 0

    @property
    def more(self) -> bool:
        """Has a bound cut it short?"""
        return self.last is not None
