"""The history of a run: what clients did, and which responses they got. It can be saved, and checked
later.

The rule: an operation happened at one moment, or not at all. It is a request, or all the steps of a
transaction. Times are seconds of one clock, and only for comparing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec


class Step(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One step of an operation. What it is called, needs and results in is said in `model.STEPS`."""

    what: str
    key: str = ""
    argument: Any = None
    result: Any = None
    #: of a put: milliseconds after which the key expires; 0: never
    ttl: int = 0
    #: inside a transaction: when it was decided, as `Operation.time`
    time: int = 0


#: Jepsen's outcomes, and a fourth one for transactions.
#: `ok`: it happened, at `revision`.
#: `info`: unknown. It was sent, and no response came; it happened, or not.
#: `fail`: it did not happen, and nothing was learned.
#: `observed`: its reads were true at `revision`; its writes did not happen, or not yet.
Outcome = Literal["ok", "observed", "info", "fail"]


class Operation(msgspec.Struct, gc=False):
    """What one client did. Of its steps the first `told` have a result.

    It happened between `began` and `ended` (for a transaction: while it was committed, or while its
    last step was done); `took` is all the time that it took. `error` is why it did not happen. `time`
    is when the server decided its response, by the server's clock in milliseconds since the epoch; 0:
    unknown.
    """

    kind: str
    client: int
    outcome: Outcome
    began: float
    ended: float
    took: float
    revision: int = 0
    steps: list[Step] = []
    told: int = 0
    error: str = ""
    time: int = 0

    @property
    def writes(self) -> bool:
        """Whether it may have changed anything."""
        return self.outcome in {"ok", "info"} and any(step.what in WRITES for step in self.steps)


#: When an `info` operation has ended.
NEVER: Final = 1e18

#: The steps that may change something.
WRITES = frozenset({"put", "cas", "delete", "drop", "increment", "delete_range"})

#: Characters of a value that are shown.
_LONG = 60

#: Of a revision: its keys, with their values; None: deleted.
Changes = dict[str, Any]


class Item(msgspec.Struct, array_like=True, gc=False):
    """A key that is there."""

    key: str
    value: Any
    revision: int


class FeedEvent(msgspec.Struct, array_like=True, gc=False):
    """A revision, as a follower of the changes received it."""

    revision: int
    changes: Changes
    #: of its keys that expire, when: by the server's clock in milliseconds since the epoch
    expiries: dict[str, int] = {}
    #: when it was made, likewise; 0: unknown
    time: int = 0


class History(msgspec.Struct):
    """The operations of a run, and the changes and keys that were read beside them.

    `prefix` begins all keys; nobody else writes such keys, and none was there at the beginning.
    `feed` are the revisions that changed them, as the server tells them in the end, `final` the keys
    that are there then, at `time` or before (by the server's clock; 0: unknown). `followers` were told
    the same, each from somewhere on, while it happened.
    """

    prefix: str
    operations: list[Operation] = []
    feed: list[FeedEvent] = []
    followers: list[list[FeedEvent]] = []
    final: list[Item] = []
    revision: int = 0
    time: int = 0

    def save(self, path: Path) -> None:
        """Write it to a file."""
        path.write_bytes(msgspec.json.encode(self))


def load(path: Path) -> History:
    """Read a history that was saved. Raises `msgspec.DecodeError` for anything else."""
    return msgspec.json.decode(path.read_bytes(), type=History)


def lines(operations: list[Operation]) -> Iterator[str]:
    """Show operations in order of time, a line each."""
    if not operations:
        return
    start = min(one.began for one in operations)
    for one in sorted(operations, key=lambda one: one.began):
        told = "".join(
            f" {step.what}({', '.join(map(_short, [step.key, step.argument]))})"
            + (f" for {step.ttl} ms" if step.ttl else "")
            + (f"={_short(step.result)}" if index < one.told else "")
            for index, step in enumerate(one.steps)
        )
        until = "          ..." if one.outcome == "info" else f"{one.ended - start:13.6f}"
        yield (
            f"{one.began - start:10.6f} {until}  client {one.client:<3} {one.kind:<14} {one.outcome:<8}"
            f" at {one.revision or '-':<8}{f'@{one.time}' if one.time else ''}{told}"
        )


def _short(value: Any) -> str:
    if value is None or value == "":
        return ""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."
