"""The core against a naive model: a dict, stacks of dicts, and lists of what was read.

Random runs, invariants after each step.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvactor.core.keyspace import Page
from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    Batch,
    Begin,
    Check,
    Commit,
    Drop,
    Message,
    Open,
    Precondition,
    Presence,
    Rollback,
    Status,
    Tick,
    TransactionRef,
)
from kvactor.core.operations import Delete, DeleteRange, Get, Increment, Operation, Range, Result, Set
from kvactor.core.records import value_of
from kvactor.errors import (
    ChecksFailed,
    KeyNotFound,
    KvactorError,
    NotAnInteger,
    NoTransaction,
    PreconditionFailed,
    TransactionConflict,
    TransactionNotFound,
)
from kvactor.settings import Settings
from tests.core.builders import delete, delete_range, get, scan
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness, RecordingReply
from tests.sizes import size

KEYS = st.sampled_from([b"a", b"b", b"ba"])
#: what clients do, the more often the more likely
WEIGHTS = {
    "get": 4,
    "put": 5,
    "delete": 2,
    "scan": 3,
    "begin": 2,
    "rollback": 1,
    "commit": 3,
    "drop": 1,
}
TTL = st.sampled_from([None, None, None, 1, 50, 1000])
IDLE = 30_000

Request = tuple[str, TransactionRef, bytes, bytes, int | None, int, bool, bool]
# "1" and "2" are two clients, each with an isolated transaction of its own
WITHIN: st.SearchStrategy[TransactionRef] = st.sampled_from(
    [AUTOCOMMIT, AUTOCOMMIT, SHARED, "1", "1", "2", "2"]
)
REQUEST = st.tuples(
    st.sampled_from([what for what, weight in WEIGHTS.items() for _ in range(weight)]),
    WITHIN,
    KEYS,
    st.binary(max_size=40),
    TTL,
    st.integers(1, 4),
    st.booleans(),
    # a client whose transaction has ended mostly opens another
    st.sampled_from([True, True, True, False]),
)

#: None stands for the revision that the key has.
Condition = Precondition | None
EXPECTED: st.SearchStrategy[Condition] = st.sampled_from(
    [None, None, None, None, Presence.PRESENT, Presence.ABSENT, (1,)]
)
WRITE: st.SearchStrategy[Set | Delete] = st.one_of(
    st.builds(
        Set,
        KEYS,
        st.sampled_from([b"7", b"-1", b"x", b"9223372036854775807"]),
        st.just(""),
        st.just(AUTOCOMMIT),
        TTL,
    ),
    st.builds(Delete, KEYS),
)
ENDS = st.sampled_from([b"b", b"ba", b"c", None])
OPERATION: st.SearchStrategy[Operation] = st.one_of(
    WRITE,
    st.builds(Get, KEYS),
    st.builds(Increment, KEYS, st.integers(-2, 2)),
    st.builds(Range, KEYS, ENDS, st.integers(1, 4), st.booleans()),
    st.builds(DeleteRange, KEYS, ENDS),
)
INTEGER = re.compile(rb"[ \t\n\r]*-?(0|[1-9][0-9]*)[ \t\n\r]*")

#: value, when it expires, revision (0: a draft)
Entry = tuple[bytes, float, int]
Data = dict[bytes, Entry]


class Naive:
    """A transaction, naively: its writes level by level, and all that it has read."""

    def __init__(self, now: int) -> None:
        self.levels: list[dict[bytes, Entry | None]] = [{}]
        self.keys: list[bytes] = []
        self.ranges: list[tuple[bytes, bytes]] = []
        self.until = float("inf")
        self.conflicted = False
        self.used = now


class CoreAgainstModel(RuleBasedStateMachine):
    """Every answer of the owner is the model's; the disk is sometimes slow."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = HeldJournal(holding=False)
        self.tree = HeldTree()
        self.tree.holding = False
        self.harness = OwnerHarness(self.journal, self.tree, Settings(memtable_size=700, history=5))
        self.data: Data = {}
        self.open: dict[TransactionRef, Naive] = {}
        self.ended: dict[TransactionRef, str] = {}
        self.revision = 0
        self.late: list[tuple[RecordingReply[Any], object]] = []
        self.opened = {"1": 0, "2": 0}

    def id(self, within: TransactionRef) -> TransactionRef:
        """The transaction that a client is in now."""
        return f"{within}.{self.opened[within]}" if isinstance(within, str) else within

    # -- the model --

    def alive(self, entry: Entry | None) -> Entry | None:
        return None if entry is None or entry[1] <= self.harness.now else entry

    def find(self, within: TransactionRef) -> Naive | type[KvactorError] | None:
        """The open transaction, what is wrong with it, or None."""
        one = self.open.get(within)
        if isinstance(within, str):
            if one is None:
                conflict = self.ended.get(within) == "conflict"
                return TransactionConflict if conflict else TransactionNotFound
            if self.harness.now >= one.used + IDLE:
                del self.open[within]
                return TransactionNotFound
            if self.harness.now >= one.until:
                one.conflicted = True
            one.used = self.harness.now
        return one

    def look(self, one: Naive | None, key: bytes) -> Entry | None:
        for level in reversed(one.levels if one else []):
            if key in level:
                return self.alive(level[key])
        return self.alive(self.data.get(key))

    def note(self, within: TransactionRef, one: Naive | None, key: bytes) -> None:
        if isinstance(within, str) and one and not any(key in level for level in one.levels):
            one.keys.append(key)
            if self.alive(self.data.get(key)) is not None:
                one.until = min(one.until, self.data[key][1])

    def write(self, changes: dict[bytes, Entry | None]) -> None:
        changed = [key for key, entry in changes.items() if entry is not None or key in self.data]
        for key in changed:
            entry = changes[key]
            if entry is None:
                del self.data[key]
            else:
                self.data[key] = (*entry[:2], self.revision + 1)
            for one in self.open.values():
                if key in one.keys or any(start <= key < end for start, end in one.ranges):
                    one.conflicted = True
        self.revision += bool(changed)

    # -- comparing --

    def expect(self, message: Message[Any], expected: object) -> None:
        """The answer is `expected`, now or when the disk has caught up: an error class, None for no
        matter what, or a value.
        """
        self.late.append((self.harness.ask(message), expected))
        if not self.journal.pending:
            self.compare()

    def compare(self) -> None:
        for reply, expected in self.late:
            assert reply.answered
            if isinstance(expected, type):
                assert isinstance(reply.error, expected), reply.error
            elif isinstance(expected, list):
                assert [(key, value_of(record)) for key, record in reply.result.items] == expected
            elif isinstance(expected, bytes):
                assert value_of(reply.result) == expected
            elif isinstance(expected, tuple):
                assert tuple(plain(result) for result in reply.result.results) == expected
            else:
                assert reply.error is None, reply.error
        self.late.clear()

    # -- what happens --

    @initialize()
    def begin_with_something(self) -> None:
        self.put(b"a", b"0", AUTOCOMMIT, None)
        self.open_another("1")
        self.open_another("2")

    def get(self, key: bytes, within: TransactionRef) -> None:
        within = self.id(within)
        one = self.find(within)
        if within is AUTOCOMMIT and self.journal.pending:
            return None  # readers see what is durable, which the model does not know
        if isinstance(one, type):
            return self.expect(get(key, within), one)
        if one is None and within is SHARED and self.journal.pending:
            return None
        if one and one.conflicted and isinstance(within, str):
            return self.expect(get(key, within), TransactionConflict)
        self.note(within, one, key)
        found = self.look(one, key)
        self.expect(get(key, within), KeyNotFound if found is None else found[0])
        return None

    def put(self, key: bytes, value: bytes, within: TransactionRef, ttl: int | None) -> None:
        within = self.id(within)
        message = Set(key, value, "", within, ttl)
        entry = self.draft(message)
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(message, one)
        if one is None:
            self.write({key: entry})
        elif one.conflicted and isinstance(within, str):
            return self.expect(message, TransactionConflict)
        else:
            one.levels[-1][key] = entry
        self.expect(message, None)
        return None

    def delete(self, key: bytes, within: TransactionRef) -> None:
        within = self.id(within)
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(delete(key, within), one)
        if one and one.conflicted and isinstance(within, str):
            return self.expect(delete(key, within), TransactionConflict)
        self.note(within, one, key)
        if self.look(one, key) is None:
            return self.expect(delete(key, within), KeyNotFound)
        if one is None:
            self.write({key: None})
        else:
            one.levels[-1][key] = None
        self.expect(delete(key, within), None)
        return None

    def scan(self, start: bytes, end: bytes, within: TransactionRef, limit: int, reverse: bool) -> None:
        within = self.id(within)
        message = scan(start, end, limit, reverse, within)
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(message, one)
        if one and one.conflicted and isinstance(within, str):
            return self.expect(message, TransactionConflict)
        if one is None and self.journal.pending:
            return None
        self.expect(message, self.found(within, one, start, end, limit, reverse))
        return None

    def found(
        self,
        within: TransactionRef,
        one: Naive | None,
        start: bytes,
        end: bytes,
        limit: int,
        reverse: bool,
    ) -> list[tuple[bytes, bytes]]:
        names = set(self.data)
        for level in one.levels if one else []:
            names |= set(level)
        found = [
            (key, entry[0])
            for key in sorted(names, reverse=reverse)
            if start <= key < end and (entry := self.look(one, key)) is not None
        ]
        if len(found) > limit:
            found = found[:limit]
            start, end = (found[-1][0], end) if reverse else (start, found[-1][0] + b"\0")
        if isinstance(within, str) and one:
            one.ranges.append((start, end))
            for key, _ in found:
                if not any(key in level for level in one.levels):
                    one.until = min(one.until, self.data[key][1])
        return found

    # -- more than one plain read or write --

    def unit(
        self, message: Message[Any], within: TransactionRef, do: Callable[[Naive], object]
    ) -> None:
        """Expect what `do` says, an error class or a result; only then what it wrote is written."""
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(message, one)
        if one and one.conflicted and isinstance(within, str):
            return self.expect(message, TransactionConflict)
        unit = one or Naive(self.harness.now)
        unit.levels.append({})
        expected = do(unit)
        level = unit.levels.pop()
        if one is None and not isinstance(expected, type):
            self.write(level)
        elif not isinstance(expected, type):
            unit.levels[-1].update(level)
        self.expect(message, expected)
        return None

    def expected(self, one: Naive | None, key: bytes, condition: Condition) -> Precondition:
        if condition is not None:
            return condition
        entry = self.look(one, key)
        return Presence.ABSENT if entry is None else (entry[2],)

    def holds(self, within: TransactionRef, unit: Naive, key: bytes, expected: Precondition) -> bool:
        self.note(within, unit, key)
        entry = self.look(unit, key)
        if isinstance(expected, Presence):
            return (entry is None) == (expected is Presence.ABSENT)
        return entry is not None and entry[2] in expected

    def draft(self, message: Set) -> Entry:
        return message.value, float("inf") if message.ttl is None else self.harness.now + message.ttl, 0

    def operate(self, within: TransactionRef, unit: Naive, one: Operation) -> object:
        top = unit.levels[-1]
        if isinstance(one, Range | DeleteRange):
            end = b"\xff" if one.end is None else one.end
            if isinstance(one, Range):
                return self.found(within, unit, one.start, end, one.limit, one.reverse)
            found = self.found(within, unit, one.start, end, 1000, False)
            top.update({key: None for key, _ in found})
            return len(found)
        if isinstance(one, Set):
            top[one.key] = self.draft(one)
            return None
        self.note(within, unit, one.key)
        entry = self.look(unit, one.key)
        if isinstance(one, Get):
            return entry and entry[0]
        if isinstance(one, Delete):
            if entry is not None:
                top[one.key] = None
            return entry is not None
        value, until, _ = entry or (b"0", float("inf"), 0)
        if not INTEGER.fullmatch(value) or not -(1 << 63) <= int(value) + one.by < 1 << 63:
            return NotAnInteger
        top[one.key] = (b"%d" % (int(value) + one.by), until, 0)
        return int(value) + one.by

    def operate_all(
        self,
        within: TransactionRef,
        unit: Naive,
        checks: Sequence[Check],
        operations: Sequence[Operation],
    ) -> object:
        # All are looked at, and so read.
        held = [self.holds(within, unit, check.key, check.expected) for check in checks]
        if not all(held):
            return ChecksFailed
        results: list[object] = []
        for one in operations:
            results.append(self.operate(within, unit, one))
            if isinstance(results[-1], type):
                return results[-1]
        return tuple(results)

    def write_if(
        self, within: TransactionRef, unit: Naive, write: Set | Delete, expected: Precondition
    ) -> object:
        if not self.holds(within, unit, write.key, expected):
            return PreconditionFailed
        return KeyNotFound if self.operate(within, unit, write) is False else None

    def reopen(self, within: TransactionRef, reopen: bool) -> TransactionRef:
        """A client whose transaction has ended may open another."""
        if isinstance(within, str) and reopen and self.id(within) not in self.open:
            self.open_another(within)
        return self.id(within)

    @rule(
        transaction=WITHIN,
        checks=st.lists(st.tuples(KEYS, EXPECTED), max_size=2),
        operations=st.lists(OPERATION, max_size=5),
        reopen=st.booleans(),
    )
    def batch(
        self,
        within: TransactionRef,
        checks: list[tuple[bytes, Condition]],
        operations: list[Operation],
        reopen: bool,
    ) -> None:
        within = self.reopen(within, reopen)
        one = self.open.get(within)
        conditions = tuple(Check(key, self.expected(one, key, condition)) for key, condition in checks)
        message = Batch(conditions, tuple(operations), within)
        self.unit(message, within, lambda unit: self.operate_all(within, unit, conditions, operations))

    @rule(transaction=WITHIN, write=WRITE, condition=EXPECTED, reopen=st.booleans())
    def conditional_write(
        self, within: TransactionRef, write: Set | Delete, condition: Condition, reopen: bool
    ) -> None:
        within = self.reopen(within, reopen)
        expected = self.expected(self.open.get(within), write.key, condition)
        message: Message[Any] = msgspec.structs.replace(
            write, transaction=within, precondition=expected
        )
        self.unit(message, within, lambda unit: self.write_if(within, unit, write, expected))

    @rule(transaction=WITHIN, start=KEYS, end=ENDS, reopen=st.booleans())
    def delete_range(
        self, within: TransactionRef, start: bytes, end: bytes | None, reopen: bool
    ) -> None:
        within = self.reopen(within, reopen)
        message = delete_range(start, end, within)
        self.unit(message, within, lambda unit: (self.operate(within, unit, message),))

    # -- transactions --

    def open_another(self, client: str) -> None:
        self.opened[client] += 1
        self.open[self.id(client)] = Naive(self.harness.now)
        self.expect(Open(f"{client}.{self.opened[client]}"), None)

    def begin(self, within: TransactionRef) -> None:
        within = self.id(within)
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(Begin(within), one)
        if one is None:
            self.open[within] = Naive(self.harness.now)
        elif one.conflicted and isinstance(within, str):
            return self.expect(Begin(within), TransactionConflict)
        elif len(one.levels) == 32:
            return None
        else:
            one.levels.append({})
        self.expect(Begin(within), None)
        return None

    def rollback(self, within: TransactionRef) -> None:
        within = self.id(within)
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(Rollback(within), one)
        if one is None:
            return self.expect(Rollback(within), NoTransaction)
        if one.conflicted and isinstance(within, str) and len(one.levels) > 1:
            return self.expect(Rollback(within), TransactionConflict)
        one.levels.pop()
        if not one.levels:
            del self.open[within]
        self.expect(Rollback(within), None)
        return None

    def drop(self, within: TransactionRef) -> None:
        within = self.id(within)
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(Drop(within), one)
        if one is None:
            return self.expect(Drop(within), NoTransaction)
        del self.open[within]
        self.expect(Drop(within), None)
        return None

    def commit(self, within: TransactionRef) -> None:
        within = self.id(within)
        if self.ended.get(within) == "committed":
            return self.expect(Commit(within), None)
        one = self.find(within)
        if isinstance(one, type):
            return self.expect(Commit(within), one)
        if one is None:
            return self.expect(Commit(within), NoTransaction)
        if one.conflicted and isinstance(within, str):
            del self.open[within]
            self.ended[within] = "conflict"
            return self.expect(Commit(within), TransactionConflict)
        top = one.levels.pop()
        if one.levels:
            one.levels[-1].update(top)
        else:
            del self.open[within]
            if isinstance(within, str):
                self.ended[within] = "committed"
            self.write(top)
        self.expect(Commit(within), None)
        return None

    @rule(requests=st.lists(REQUEST, min_size=1, max_size=10))
    def clients(self, requests: list[Request]) -> None:
        for request in requests:
            self.request(*request)

    @rule(
        client=st.sampled_from([SHARED, "1", "2"]),
        requests=st.lists(REQUEST, min_size=1, max_size=4),
        keep=st.booleans(),
    )
    def a_level_of_its_own(self, client: TransactionRef, requests: list[Request], keep: bool) -> None:
        self.reopen(client, True)
        self.begin(client)
        for what, _, key, value, ttl, limit, reverse, reopen in requests:
            self.request(what, client, key, value, ttl, limit, reverse, reopen)
        (self.commit if keep else self.rollback)(client)
        self.scan(b"a", b"z", client, 4, False)

    def request(
        self,
        what: str,
        within: TransactionRef,
        key: bytes,
        value: bytes,
        ttl: int | None,
        limit: int,
        reverse: bool,
        reopen: bool,
    ) -> None:
        self.reopen(within, reopen)
        match what:
            case "get":
                self.get(key, within)
            case "put":
                self.put(key, value, within, ttl)
            case "delete":
                self.delete(key, within)
            case "scan":
                self.scan(key, key + b"z" if limit > 2 else b"z", within, limit, reverse)
            case _ if within is not AUTOCOMMIT:
                getattr(self, what)(within)

    @rule(milliseconds=st.sampled_from([1, 1, 1, 49, 49, 60, 60, 1000, 1000, IDLE]))
    def time_passes(self, milliseconds: int) -> None:
        self.harness.now += milliseconds

    @precondition(lambda self: not self.journal.pending)
    @rule()
    def tick(self) -> None:
        # A sweep finds what is durable, so the model's needs a disk that has caught up.
        for within in [w for w, one in self.open.items() if self.harness.now >= one.used + IDLE]:
            if isinstance(within, str):
                del self.open[within]
        self.harness.tell(Tick(1 << 40))
        self.write({key: None for key, entry in self.data.items() if entry[1] <= self.harness.now})

    @rule(slow=st.booleans())
    def the_disk_becomes_slow(self, slow: bool) -> None:
        self.journal.holding = slow or self.journal.holding

    @rule()
    def the_disk_is_fast_again(self) -> None:
        self.journal.holding = False
        while self.journal.pending:
            self.journal.release()
            self.harness.settle()
        self.compare()

    @precondition(lambda self: not self.tree.pending)
    @rule(holding=st.booleans())
    def folds_are_held_up(self, holding: bool) -> None:
        self.tree.holding = holding

    @precondition(lambda self: self.tree.pending)
    @rule()
    def a_fold_ends(self) -> None:
        self.tree.release()
        self.harness.settle()

    @precondition(lambda self: not self.journal.pending and not self.tree.pending)
    @rule(really=st.sampled_from([True, False, False]))
    def the_server_is_killed_and_restarted(self, really: bool) -> None:
        if not really:
            return
        self.compare()
        now = self.harness.now
        self.harness = OwnerHarness(self.journal, self.tree, Settings(memtable_size=700, history=5))
        self.harness.now = now
        self.open.clear()
        self.ended.clear()

    # -- what always holds --

    @invariant()
    def the_revision_and_the_count_are_right(self) -> None:
        if not self.journal.pending:
            reply = self.harness.ask(Status())
            assert reply.revision == self.revision
            assert reply.result.keys == len(self.data)

    def teardown(self) -> None:
        self.the_disk_is_fast_again()
        found = self.harness.ask(scan(limit=1000)).result.items
        alive = {key: entry[0] for key, entry in self.data.items() if self.alive(entry)}
        assert {key: value_of(record) for key, record in found} == alive


def plain(result: Result) -> object:
    """A batch's result as the model has it."""
    if isinstance(result, Page):
        return [(key, value_of(record)) for key, record in result.items]
    return value_of(result) if isinstance(result, bytes) else result


CoreAgainstModel.TestCase.settings = settings(
    max_examples=size("examples"),
    stateful_step_count=50,
    # Making an example smaller can take minutes; it is printed as it was found, and can be replayed.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    print_blob=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCoreAgainstModel = CoreAgainstModel.TestCase
