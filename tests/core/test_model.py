"""The core against a naive model: a dict, stacks of dicts, and lists of what was read.

Random runs, invariants after each step.
"""

import re
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvactor.core.context import Page
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
    TransactionRef,
)
from kvactor.core.operations import Delete, DeleteRange, Get, Increment, Operation, Range, Result, Set
from kvactor.core.records import MISSING, value_of
from kvactor.errors import (
    ChecksFailed,
    KeyNotFound,
    KvactorError,
    NotAnInteger,
    NoTransaction,
    TransactionConflict,
    TransactionNotFound,
)
from kvactor.settings import Settings
from tests.core.builders import TICK, delete, get, put, scan
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
TRANSACTIONS: st.SearchStrategy[TransactionRef] = st.sampled_from(
    [AUTOCOMMIT, AUTOCOMMIT, SHARED, "1", "1", "2", "2"]
)
REQUEST = st.tuples(
    st.sampled_from([what for what, weight in WEIGHTS.items() for _ in range(weight)]),
    TRANSACTIONS,
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
CONDITIONS: st.SearchStrategy[Condition] = st.sampled_from(
    [None, None, None, None, Presence.PRESENT, Presence.ABSENT, (1,)]
)
WRITE: st.SearchStrategy[Set | Delete] = st.one_of(
    st.builds(
        Set,
        KEYS,
        st.sampled_from([b"7", b"-1", b"x", b"9223372036854775807"]),
        st.just(""),
        TTL,
        st.booleans(),
    ),
    st.builds(Delete, KEYS, st.booleans()),
)
ENDS = st.sampled_from([b"b", b"ba", b"c", None])
OPERATION: st.SearchStrategy[Operation[Any]] = st.one_of(
    WRITE,
    st.builds(Get, KEYS),
    st.builds(Increment, KEYS, st.integers(-2, 2)),
    st.builds(Range, KEYS, ENDS, st.integers(1, 4), st.booleans()),
    st.builds(DeleteRange, KEYS, ENDS),
)
INTEGER = re.compile(rb"[ \t\n\r]*-?(0|[1-9][0-9]*)[ \t\n\r]*")

#: value, when it expires, revision (of a draft its number in an isolated transaction, with a minus)
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
        self.drafts = 0


class CoreAgainstModel(RuleBasedStateMachine):
    """Every answer of the owner is the model's; the disk is sometimes slow."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = HeldJournal(holding=False)
        self.tree = HeldTree()
        self.tree.holding = False
        self.harness = OwnerHarness(self.journal, self.tree, Settings(memtable_size=700, history=5))
        self.data: Data = {}
        #: of each revision, the data as it left it, and when it was made
        self.states: list[Data] = [{}]
        self.times: list[float] = [0]
        self.open: dict[TransactionRef, Naive] = {}
        self.ended: dict[TransactionRef, str] = {}
        self.late: list[tuple[RecordingReply[Any], object]] = []
        self.opened = {"1": 0, "2": 0}

    def id(self, transaction: TransactionRef) -> TransactionRef:
        """The transaction that a client is in now."""
        return (
            f"{transaction}.{self.opened[transaction]}" if isinstance(transaction, str) else transaction
        )

    # -- the model --

    def alive(self, entry: Entry | None) -> Entry | None:
        return None if entry is None or entry[1] <= self.harness.now else entry

    def find(self, transaction: TransactionRef) -> Naive | type[KvactorError] | None:
        """The open transaction, what is wrong with it, or None."""
        one = self.open.get(transaction)
        if isinstance(transaction, str):
            if one is None:
                conflict = self.ended.get(transaction) == "conflict"
                return TransactionConflict if conflict else TransactionNotFound
            if self.harness.now >= one.used + IDLE:
                del self.open[transaction]
                return TransactionNotFound
            if self.harness.now >= one.until:
                one.conflicted = True
            one.used = self.harness.now
        return one

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def durable(self) -> dict[bytes, bytes]:
        """What readers outside of transactions see: the durable revision, and of its keys those that
        had not expired when the next revision was made.
        """
        durable = self.journal.head()
        at = self.harness.now if durable == self.revision else self.times[durable + 1]
        state = sorted(self.states[durable].items())
        return {key: value for key, (value, until, _) in state if until > at}

    def look(self, one: Naive | None, key: bytes) -> Entry | None:
        for level in reversed(one.levels if one else []):
            if key in level:
                return self.alive(level[key])
        return self.alive(self.data.get(key))

    def note(self, transaction: TransactionRef, one: Naive | None, key: bytes) -> None:
        if isinstance(transaction, str) and one and not any(key in level for level in one.levels):
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
        if changed:
            self.states.append(dict(self.data))
            self.times.append(self.harness.now)

    # -- comparing --

    def expect(self, message: Message[Any], expected: object) -> None:
        """The answer is `expected`, now or when the disk has caught up: an error class, a result (of a
        record or a page: the values), or None for any result.
        """
        self.late.append((self.harness.ask(message), expected))
        if not self.journal.pending:
            self.compare()

    def expect_now(self, message: Message[Any], expected: object) -> None:
        """The same, without waiting for the disk."""
        reply = self.harness.ask(message)
        assert reply.answered
        self.compare_one(reply, expected)

    def compare(self) -> None:
        for reply, expected in self.late:
            assert reply.answered
            self.compare_one(reply, expected)
        self.late.clear()

    def compare_one(self, reply: RecordingReply[Any], expected: object) -> None:
        if isinstance(expected, type):
            assert isinstance(reply.error, expected), reply.error
        elif isinstance(expected, list):
            assert [(key, value_of(record)) for key, record in reply.result.items] == expected
        elif isinstance(expected, bytes):
            assert value_of(reply.result) == expected
        elif expected is MISSING:
            assert reply.result is None
        elif isinstance(expected, bool):
            assert reply.result is expected
        elif isinstance(expected, tuple):
            assert tuple(plain(result) for result in reply.result.results) == expected
        else:
            assert reply.error is None, reply.error

    # -- what happens --

    @initialize()
    def begin_with_something(self) -> None:
        self.put(b"a", b"0", AUTOCOMMIT, None)
        self.open_another("1")
        self.open_another("2")

    def get(self, key: bytes, transaction: TransactionRef) -> None:
        transaction = self.id(transaction)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(get(key, transaction), one)
        if one is None:
            return self.expect_now(get(key, transaction), self.durable().get(key, MISSING))
        if one.conflicted and isinstance(transaction, str):
            return self.expect(get(key, transaction), TransactionConflict)
        self.note(transaction, one, key)
        found = self.look(one, key)
        self.expect(get(key, transaction), MISSING if found is None else found[0])
        return None

    def put(self, key: bytes, value: bytes, transaction: TransactionRef, ttl: int | None) -> None:
        transaction = self.id(transaction)
        message = put(key, value, transaction, ttl=ttl)
        one = self.find(transaction)
        created = one is None and self.look(None, key) is None
        if isinstance(one, type):
            return self.expect(message, one)
        if one is None:
            self.write({key: self.draft(value, ttl)})
        elif one.conflicted and isinstance(transaction, str):
            return self.expect(message, TransactionConflict)
        else:
            one.levels[-1][key] = self.draft(value, ttl, self.number(transaction, one))
        self.expect(message, created)
        return None

    def delete(self, key: bytes, transaction: TransactionRef) -> None:
        transaction = self.id(transaction)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(delete(key, transaction), one)
        if one and one.conflicted and isinstance(transaction, str):
            return self.expect(delete(key, transaction), TransactionConflict)
        self.note(transaction, one, key)
        if self.look(one, key) is None:
            return self.expect(delete(key, transaction), KeyNotFound)
        if one is None:
            self.write({key: None})
        else:
            one.levels[-1][key] = None
        self.expect(delete(key, transaction), True)
        return None

    def scan(
        self, start: bytes, end: bytes, transaction: TransactionRef, limit: int, reverse: bool
    ) -> None:
        transaction = self.id(transaction)
        message = scan(start, end, limit, reverse, transaction)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(message, one)
        if one and one.conflicted and isinstance(transaction, str):
            return self.expect(message, TransactionConflict)
        if one is None:
            durable = [item for item in self.durable().items() if start <= item[0] < end]
            return self.expect_now(message, durable[:: -1 if reverse else 1][:limit])
        self.expect(message, self.found(transaction, one, start, end, limit, reverse))
        return None

    def found(
        self,
        transaction: TransactionRef,
        one: Naive,
        start: bytes,
        end: bytes,
        limit: int,
        reverse: bool,
    ) -> list[tuple[bytes, bytes]]:
        names = set(self.data)
        for level in one.levels:
            names |= set(level)
        found = [
            (key, entry[0])
            for key in sorted(names, reverse=reverse)
            if start <= key < end and (entry := self.look(one, key)) is not None
        ]
        if len(found) > limit:
            found = found[:limit]
            start, end = (found[-1][0], end) if reverse else (start, found[-1][0] + b"\0")
        if isinstance(transaction, str):
            one.ranges.append((start, end))
            for key, _ in found:
                if not any(key in level for level in one.levels):
                    one.until = min(one.until, self.data[key][1])
        return found

    # -- more than one plain read or write --

    def precondition_of(self, one: Naive | None, key: bytes, condition: Condition) -> Precondition:
        if condition is not None:
            return condition
        entry = self.look(one, key)
        return Presence.ABSENT if entry is None else (entry[2],)

    def holds(self, transaction: TransactionRef, savepoint: Naive, check: Check) -> bool:
        self.note(transaction, savepoint, check.key)
        entry = self.look(savepoint, check.key)
        if isinstance(check.precondition, Presence):
            return (entry is None) == (check.precondition is Presence.ABSENT)
        return entry is not None and entry[2] in check.precondition

    def draft(self, value: bytes, ttl: int | None, number: int = 0) -> Entry:
        return value, float("inf") if ttl is None else self.harness.now + ttl, -number

    def number(self, transaction: TransactionRef, one: Naive) -> int:
        """Drafts of isolated transactions have numbers, which never come back."""
        one.drafts += 1
        return one.drafts if isinstance(transaction, str) else 0

    def operate(self, transaction: TransactionRef, savepoint: Naive, one: Operation[Any]) -> object:
        top = savepoint.levels[-1]
        if isinstance(one, Range | DeleteRange):
            end = b"\xff" if one.end is None else one.end
            if isinstance(one, Range):
                return self.found(transaction, savepoint, one.start, end, one.limit, one.reverse)
            found = self.found(transaction, savepoint, one.start, end, 1000, False)
            top.update({key: None for key, _ in found})
            return len(found)
        assert isinstance(one, Get | Set | Delete | Increment)
        if not isinstance(one, Set) or one.report_created:
            self.note(transaction, savepoint, one.key)
        entry = self.look(savepoint, one.key)
        if isinstance(one, Set):
            top[one.key] = self.draft(one.value, one.ttl, self.number(transaction, savepoint))
            return one.report_created and entry is None
        if isinstance(one, Get):
            return entry and entry[0]
        if isinstance(one, Delete):
            if entry is not None:
                top[one.key] = None
            return KeyNotFound if entry is None and one.must_exist else entry is not None
        value, until, _ = entry or (b"0", float("inf"), 0)
        if not INTEGER.fullmatch(value) or not -(1 << 63) <= int(value) + one.by < 1 << 63:
            return NotAnInteger
        top[one.key] = (b"%d" % (int(value) + one.by), until, -self.number(transaction, savepoint))
        return int(value) + one.by

    def operate_all(
        self,
        transaction: TransactionRef,
        savepoint: Naive,
        checks: Sequence[Check],
        operations: Sequence[Operation[Any]],
    ) -> object:
        """Return an error class, or the results."""
        # All are looked at, and so read.
        held = [self.holds(transaction, savepoint, check) for check in checks]
        if not all(held):
            return ChecksFailed
        results: list[object] = []
        for one in operations:
            results.append(self.operate(transaction, savepoint, one))
            if isinstance(results[-1], type):
                return results[-1]
        return tuple(results)

    def reopen(self, transaction: TransactionRef, reopen: bool) -> TransactionRef:
        """A client whose transaction has ended may open another."""
        if isinstance(transaction, str) and reopen and self.id(transaction) not in self.open:
            self.open_another(transaction)
        return self.id(transaction)

    @rule(
        transaction=TRANSACTIONS,
        conditions=st.lists(st.tuples(KEYS, CONDITIONS), max_size=2),
        operations=st.lists(OPERATION, max_size=5),
        reopen=st.booleans(),
    )
    def batch(
        self,
        transaction: TransactionRef,
        conditions: list[tuple[bytes, Condition]],
        operations: list[Operation[Any]],
        reopen: bool,
    ) -> None:
        transaction = self.reopen(transaction, reopen)
        asked = self.open.get(transaction)
        checks = tuple(Check(key, self.precondition_of(asked, key, one)) for key, one in conditions)
        message = Batch(tuple(operations), checks, transaction)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(message, one)
        if one and one.conflicted and isinstance(transaction, str):
            return self.expect(message, TransactionConflict)
        savepoint = one or Naive(self.harness.now)
        savepoint.levels.append({})
        expected = self.operate_all(transaction, savepoint, checks, operations)
        level = savepoint.levels.pop()
        # What it wrote is written only if it has succeeded.
        if one is None and not isinstance(expected, type):
            self.write(level)
        elif not isinstance(expected, type):
            savepoint.levels[-1].update(level)
        self.expect(message, expected)
        return None

    @rule(transaction=TRANSACTIONS, write=WRITE, condition=CONDITIONS, reopen=st.booleans())
    def conditional_write(
        self, transaction: TransactionRef, write: Set | Delete, condition: Condition, reopen: bool
    ) -> None:
        self.batch(transaction, [(write.key, condition)], [write], reopen)

    @rule(transaction=TRANSACTIONS, start=KEYS, end=ENDS, reopen=st.booleans())
    def delete_range(
        self, transaction: TransactionRef, start: bytes, end: bytes | None, reopen: bool
    ) -> None:
        self.batch(transaction, [], [DeleteRange(start, end)], reopen)

    # -- transactions --

    def open_another(self, client: str) -> None:
        self.opened[client] += 1
        self.open[self.id(client)] = Naive(self.harness.now)
        self.expect(Open(f"{client}.{self.opened[client]}"), None)

    def begin(self, transaction: TransactionRef) -> None:
        transaction = self.id(transaction)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(Begin(transaction), one)
        if one is None:
            self.open[transaction] = Naive(self.harness.now)
        elif one.conflicted and isinstance(transaction, str):
            return self.expect(Begin(transaction), TransactionConflict)
        elif len(one.levels) == 32:
            return None
        else:
            one.levels.append({})
        self.expect(Begin(transaction), None)
        return None

    def rollback(self, transaction: TransactionRef) -> None:
        transaction = self.id(transaction)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(Rollback(transaction), one)
        if one is None:
            return self.expect(Rollback(transaction), NoTransaction)
        if one.conflicted and isinstance(transaction, str) and len(one.levels) > 1:
            return self.expect(Rollback(transaction), TransactionConflict)
        one.levels.pop()
        if not one.levels:
            del self.open[transaction]
        self.expect(Rollback(transaction), None)
        return None

    def drop(self, transaction: TransactionRef) -> None:
        transaction = self.id(transaction)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(Drop(transaction), one)
        if one is None:
            return self.expect(Drop(transaction), NoTransaction)
        del self.open[transaction]
        self.expect(Drop(transaction), None)
        return None

    def commit(self, transaction: TransactionRef) -> None:
        transaction = self.id(transaction)
        if self.ended.get(transaction) == "committed":
            return self.expect(Commit(transaction), None)
        one = self.find(transaction)
        if isinstance(one, type):
            return self.expect(Commit(transaction), one)
        if one is None:
            return self.expect(Commit(transaction), NoTransaction)
        if one.conflicted and isinstance(transaction, str):
            del self.open[transaction]
            self.ended[transaction] = "conflict"
            return self.expect(Commit(transaction), TransactionConflict)
        top = one.levels.pop()
        if one.levels:
            one.levels[-1].update(top)
        else:
            del self.open[transaction]
            if isinstance(transaction, str):
                self.ended[transaction] = "committed"
            self.write(top)
        self.expect(Commit(transaction), None)
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
        transaction: TransactionRef,
        key: bytes,
        value: bytes,
        ttl: int | None,
        limit: int,
        reverse: bool,
        reopen: bool,
    ) -> None:
        self.reopen(transaction, reopen)
        match what:
            case "get":
                self.get(key, transaction)
            case "put":
                self.put(key, value, transaction, ttl)
            case "delete":
                self.delete(key, transaction)
            case "scan":
                self.scan(key, key + b"z" if limit > 2 else b"z", transaction, limit, reverse)
            case _ if transaction is not AUTOCOMMIT:
                getattr(self, what)(transaction)

    @rule(milliseconds=st.sampled_from([1, 1, 1, 49, 49, 60, 60, 1000, 1000, IDLE]))
    def time_passes(self, milliseconds: int) -> None:
        self.harness.now += milliseconds

    @rule(
        key=KEYS, other=KEYS, transaction=TRANSACTIONS, milliseconds=st.sampled_from([49, 50, 51, 60])
    )
    def a_key_expires_about_when_a_write_is_staged(
        self, key: bytes, other: bytes, transaction: TransactionRef, milliseconds: int
    ) -> None:
        self.the_disk_is_fast_again()
        self.put(key, b"0", AUTOCOMMIT, 50)
        self.put(other, b"0", AUTOCOMMIT, 51)
        self.harness.now += milliseconds - 49
        self.the_disk_becomes_slow(True)
        self.batch(AUTOCOMMIT, [], [Get(key), Increment(b"b", 1)], False)
        self.harness.now += 49
        self.reopen(transaction, True)
        for one in (transaction, AUTOCOMMIT):
            self.delete(key, one)
            self.get(other, one)
            self.scan(b"a", b"z", one, 4, False)

    @precondition(lambda self: not self.journal.pending)
    @rule()
    def tick(self) -> None:
        # A sweep finds what is durable, so the model's needs a disk that has caught up.
        for transaction in [w for w, one in self.open.items() if self.harness.now >= one.used + IDLE]:
            if isinstance(transaction, str):
                del self.open[transaction]
        self.harness.tell(TICK)
        self.write({key: None for key, entry in self.data.items() if entry[1] <= self.harness.now})

    @rule(slow=st.booleans())
    def the_disk_becomes_slow(self, slow: bool) -> None:
        self.journal.holding = slow or self.journal.holding

    @precondition(lambda self: self.journal.pending)
    @rule()
    def a_flush_ends(self) -> None:
        self.journal.release()
        self.harness.settle()
        if not self.journal.pending:
            self.compare()

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
