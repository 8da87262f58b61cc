"""Checks that a history is strictly serializable, and that nothing was lost or invented.

Every response carries the revision at which it was true, and that gives an order of all operations.
The checker plays them on a model in that order. Each result has to be the model's, and the order must
not contradict real time. The cost is little more than one look at each operation, however many clients
there were.

The rule: a response is taken at its word, and compared with all others. An `info` operation is matched
with a revision that no acknowledged operation has written, or it did not happen. A key that has expired
by the time of an operation is not there for it. The server may delete it then, by itself, and nothing
else.
"""

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from sortedcontainers import SortedDict

from kvactor.tools.stress.expiry import Expiries
from kvactor.tools.stress.history import WRITES, Changes, FeedEvent, History, Operation
from kvactor.tools.stress.model import Entry, Look, Mismatch, Run, State

#: When an operation happened: its revision, and behind the write that made it or not.
Point = tuple[int, bool]


class Verdict(msgspec.Struct):
    """The result of a check: `violation` is a sentence, empty without one, and `stretch` the operations
    that show it. `matched` counts the `info` operations that have happened.
    """

    violation: str = ""
    stretch: list[Operation] = []
    revisions: int = 0
    matched: int = 0


class _Violation(Exception):
    """`keys`, from revision `since` to `until`, is what to look at, and `operations` besides."""

    def __init__(
        self,
        sentence: str,
        operations: Iterable[Operation] = (),
        keys: Iterable[str] = (),
        since: int = 0,
        until: int = 0,
    ) -> None:
        super().__init__(sentence)
        self.operations = list(operations)
        self.keys = set(keys)
        self.since = since
        self.until = until


def check(history: History) -> Verdict:
    """Return the verdict on a history."""
    replay = _Replay(history)
    try:
        replay.run()
        _check_time(replay.points)
        _check_final(history, replay.state)
        _check_followers(history)
    except _Violation as violation:
        return Verdict(
            str(violation),
            _stretch(history, violation),
            revisions=len(history.feed),
            matched=replay.matched,
        )
    return Verdict(revisions=len(history.feed), matched=replay.matched)


class _Replay:
    def __init__(self, history: History) -> None:
        self.state: State = SortedDict()
        self.points: list[tuple[Point, Operation]] = []
        self.matched = 0
        self._history = history
        self._expiries = Expiries(self._still)
        #: operations that may have happened, by the keys that they may have written; under "" those
        #: that may have deleted a range
        self._unknown: dict[str, list[Operation]] = defaultdict(list)
        self._at: dict[int, list[Operation]] = defaultdict(list)
        for one in history.operations:
            if one.outcome in {"ok", "observed"}:
                self._at[one.revision].append(one)
            elif one.outcome == "info":
                for key in _written(one):
                    self._unknown[key].append(one)

    def run(self) -> None:
        """Play all operations in the order of their revisions. Raises `_Violation`."""
        feed = _by_revision(self._history.feed)
        for revision in sorted(feed.keys() | self._at.keys()):
            operations = self._at.pop(revision, [])
            if revision in feed:
                self._write(feed[revision], operations)
            for one in sorted(operations, key=lambda one: one.time):
                self._read(revision, one)

    def _write(self, event: FeedEvent, operations: list[Operation]) -> None:
        """Find the writer of a revision, and apply it."""
        able, wrong = self._able(operations, event)
        if not able:
            if self._is_sweep(event):
                self._apply(event)
                return
            able = self._unknown_able(event)[:1]
            if not able:
                raise self._nobody(event.revision, event.changes, operations, wrong)
        elif len(able) > 1 or any(one.ended < able[0].began for one in operations):
            # One of them may have changed nothing, because another one had done the same before.
            able += self._unknown_able(event)
        looks = [self._played(one, event.time)[1].looks for one in able]
        self._apply(event)
        writer = next((one for one in able if self._was_first(one, operations)), able[0])
        self._look(writer, event.revision, looks[able.index(writer)])
        self.points.append(((event.revision, False), writer))
        if writer.outcome == "info":
            for key in _written(writer):
                self._unknown[key].remove(writer)
            self.matched += 1
        else:
            operations.remove(writer)

    def _apply(self, event: FeedEvent) -> None:
        for key, value in event.changes.items():
            if value is None:
                del self.state[key]
            else:
                self.state[key] = (value, event.revision, event.expiries.get(key, 0))

    def _is_sweep(self, event: FeedEvent) -> bool:
        """Return whether a revision deletes keys that have expired, and nothing else."""
        expiries = [self.state[key][2] for key in event.changes if key in self.state]
        return (
            all(value is None for value in event.changes.values())
            and len(expiries) == len(event.changes)
            and all(0 < expires_at <= event.time for expires_at in expiries)
        )

    def _able(
        self, operations: Iterable[Operation], event: FeedEvent
    ) -> tuple[list[Operation], Mismatch | None]:
        """Return the operations that would change this, and what was wrong with another one."""
        able: list[Operation] = []
        wrong = None
        for one in operations:
            if one.writes:
                try:
                    changes, run = self._played(one, event.time)
                    if changes == event.changes and run.expiries == event.expiries:
                        able.append(one)
                except Mismatch as error:
                    wrong = error
        return able, wrong

    def _unknown_able(self, event: FeedEvent) -> list[Operation]:
        """The same of those that may have happened, in order of time."""
        candidates = self._unknown[next(iter(event.changes))] + self._unknown[""]
        return self._able(sorted(candidates, key=lambda one: one.began), event)[0]

    def _was_first(self, writer: Operation, operations: list[Operation]) -> bool:
        """Can all others that were told of a revision have come behind its writer?"""
        return all(
            one is writer or (one.ended >= writer.began and self._still(one)) for one in operations
        )

    def _still(self, one: Operation) -> bool:
        try:
            return not self._played(one)[0] or one.outcome != "ok"
        except Mismatch:
            return False

    def _nobody(
        self, revision: int, changes: Changes, told: list[Operation], wrong: Mismatch | None
    ) -> _Violation:
        writers = [one for one in told if one.writes]
        if wrong is not None:
            return self._misled(revision, writers[0], wrong)
        sentence = f"Revision {revision} changed {sorted(changes)}, which "
        sentence += "is not what its writer did." if writers else "nobody did, or it was rolled back."
        return _Violation(sentence, writers, changes, revision - 1, revision)

    def _read(self, revision: int, one: Operation) -> None:
        """Play what has written nothing."""
        try:
            changes, run = self._played(one)
        except Mismatch as wrong:
            raise self._misled(revision, one, wrong) from None
        if changes and one.outcome == "ok":
            raise _Violation(
                f"A write was acknowledged at revision {revision}, and is not there.",
                [one],
                changes,
                revision - 1,
                revision,
            )
        self._look(one, revision, run.looks)
        self.points.append(((revision, True), one))

    def _played(self, one: Operation, time: int = 0) -> tuple[Changes, Run]:
        """Play an operation; `time` is when it was decided, if it does not say itself."""
        run = Run(self.state, one.time or time)
        return run.play(one.steps, one.told), run

    def _look(self, one: Operation, revision: int, looks: list[Look]) -> None:
        """Take in which keys an operation found alive, and which expired."""
        found = self._expiries.add(one, revision, looks)
        if found is not None:
            (expired, since), (alive, until), key = found
            raise _Violation(
                f"At revision {since}, client {expired.client} found {key} expired; at revision "
                f"{until}, client {alive.client} still found it, and comes behind.",
                [expired, alive],
                [key],
                since,
                until,
            )

    def _misled(self, revision: int, one: Operation, wrong: Mismatch) -> _Violation:
        key = wrong.step.key
        standing = self.state.get(key)
        since = standing[1] if standing is not None and wrong.step.what != "scan" else revision
        # If it was told what another revision says, that one belongs to the story.
        if wrong.step.what == "get" and wrong.step.result is not None:
            since = min(since, wrong.step.result[1] or since)
        return _Violation(
            f"At revision {revision}, step {wrong.index + 1} of what client {one.client} did: {wrong}.",
            [one],
            [key],
            since,
            revision,
        )


def _written(one: Operation) -> set[str]:
    return {
        "" if step.what == "delete_range" else step.key for step in one.steps if step.what in WRITES
    }


def _by_revision(events: Iterable[FeedEvent]) -> dict[int, FeedEvent]:
    found: dict[int, FeedEvent] = {}
    last = 0
    for one in events:
        if one.revision <= last:
            raise _Violation(f"The feed told revision {one.revision} behind {last}.")
        last = one.revision
        if one.changes:
            found[last] = one
    return found


def _check_time(points: list[tuple[Point, Operation]]) -> None:
    """Raise `_Violation` if something that had ended came, by its revision, behind something that
    had not begun.
    """
    by_end = sorted(points, key=lambda one: one[1].ended)
    ended = 0
    newest: tuple[Point, Operation] | None = None
    for point, one in sorted(points, key=lambda one: one[1].began):
        while ended < len(by_end) and by_end[ended][1].ended < one.began:
            if newest is None or by_end[ended][0] > newest[0]:
                newest = by_end[ended]
            ended += 1
        if newest is not None and newest[0] > point:
            raise _Violation(
                f"Something was told at revision {newest[0][0]}, and what began after that is of "
                f"revision {point[0]}: it was stale, or it was written into the past.",
                [newest[1], one],
            )


def _check_final(history: History, state: State) -> None:
    final = {item.key: (item.value, item.revision) for item in history.final}
    for key in sorted(final.keys() | state.keys()):
        entry = state.get(key)
        expected = entry and entry[:2]
        if final.get(key) != expected and not (key not in final and _may_be_gone(entry, history.time)):
            raise _Violation(
                f"In the end {key} is {final.get(key)}, and by the changes it is {expected}.",
                keys=[key],
                since=entry[1] if entry else history.revision,
                until=history.revision,
            )


def _may_be_gone(entry: Entry | None, time: int) -> bool:
    return entry is not None and 0 < entry[2] <= time


def _check_followers(history: History) -> None:
    feed = {one.revision: index for index, one in enumerate(history.feed)}
    for number, events in enumerate(history.followers):
        for index, one in enumerate(events):
            place = feed.get(one.revision)
            if place is None or history.feed[place] != one:
                raise _Violation(
                    f"Follower {number} was told of revision {one.revision} what is not in the feed: "
                    f"{one.changes}.",
                    keys=one.changes,
                    since=one.revision,
                    until=one.revision,
                )
            if index and place != feed[events[index - 1].revision] + 1:
                raise _Violation(
                    f"Follower {number} was told revision {one.revision} behind "
                    f"{events[index - 1].revision}, and missed what is between, or was told twice."
                )


def _stretch(history: History, violation: _Violation) -> list[Operation]:
    """Return the shortest stretch of the history that shows a violation: who was told what is wrong,
    and who has written the keys meanwhile.
    """
    shown = list(violation.operations)
    told = {id(one) for one in shown}
    for one in history.operations:
        inside = one.outcome == "info" or violation.since <= one.revision <= violation.until
        if (
            inside
            and one.writes
            and id(one) not in told
            and not violation.keys.isdisjoint(_written(one))
        ):
            shown.append(one)
    return shown
