"""Where answers go, and when: the mechanism of promises P3 and P4.

The rule: an answer goes out once what it rests on is durable, be it a value or an error; and whoever
waits is answered exactly once, unless gone.
"""

from typing import Any, Protocol

from kvactor.core.messages import Answer
from kvactor.errors import KvactorError


class ReplyTo(Protocol):
    """Where an answer goes. An `asyncio.Future` is one."""

    def set_result(self, result: Any, /) -> None:
        """Take the answer, an `Answer`."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take the error, a `KvactorError`."""

    def done(self) -> bool:
        """Has it been answered, or has whoever waited gone away?"""


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
        """Give the answers that rest on nothing newer than revision `durable`, in order."""
        held = self._held
        for depends_on, reply, outcome in held:
            if depends_on <= durable:
                deliver(reply, outcome)
        # Not before: if one cannot be given, the owner has failed, and `fail` is for all the others.
        self._held = [item for item in held if item[0] > durable]

    def fail(self, error: KvactorError) -> None:
        """Give everyone who waits `error` instead."""
        held, self._held = self._held, []
        for _, reply, _ in held:
            deliver(reply, error)


def deliver(reply: ReplyTo, outcome: Outcome) -> None:
    """Give an answer, unless nobody waits for it any more."""
    if reply.done():
        return
    if isinstance(outcome, Answer):
        reply.set_result(outcome)
    else:
        reply.set_exception(outcome)
