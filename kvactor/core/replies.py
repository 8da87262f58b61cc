"""Where replies go, and when: the mechanism of promises P3 and P4.

The rule: a reply goes out once the revision that it depends on is durable, be it a result or an
error. Each asker gets exactly one, unless it has gone away.
"""

import logging
from typing import Any, Protocol

from kvactor.core.messages import Answer
from kvactor.errors import KvactorError

log = logging.getLogger(__name__)


class ReplyTo(Protocol):
    """Where a result or an error goes. An `asyncio.Future` is one.

    The three methods are called in the owner's drain, so they are quick and raise nothing. An
    exception is logged and the call is not repeated: only this asker is affected.
    """

    def set_result(self, result: Any, /) -> None:
        """Take the result, an `Answer`."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take the error, a `KvactorError`."""

    def done(self) -> bool:
        """Has it been replied to, or has the asker gone away?"""


Outcome = Answer[Any] | KvactorError


class HeldReplies:
    """Answers that wait until a revision is durable."""

    def __init__(self) -> None:
        self._held: list[tuple[int, ReplyTo, Outcome]] = []

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, depends_on: int, reply: ReplyTo, outcome: Outcome) -> None:
        """Keep an answer until revision `depends_on` is durable."""
        self._held.append((depends_on, reply, outcome))

    def release(self, durable: int) -> None:
        """Give the answers that depend on revision `durable` or an older one, in order."""
        held = self._held
        for depends_on, reply, outcome in held:
            if depends_on <= durable:
                deliver(reply, outcome)
        # Removed only now: if an answer raises, the owner fails, and `fail` answers the others.
        self._held = [item for item in held if item[0] > durable]

    def fail(self, error: KvactorError) -> None:
        """Give every waiting asker `error` instead."""
        held, self._held = self._held, []
        for _, reply, _ in held:
            deliver(reply, error)


def deliver(reply: ReplyTo, outcome: Outcome) -> None:
    """Give a reply its outcome, unless the asker has gone away. What `reply` raises is logged."""
    try:
        if reply.done():
            return
        if isinstance(outcome, Answer):
            reply.set_result(outcome)
        else:
            reply.set_exception(outcome)
    except Exception:
        log.exception("a reply could not be given to its asker")
