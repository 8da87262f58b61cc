"""The ten promises, each by its name.

What takes a process to show (kill -9, signals) is in tests/process.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import kvactor
from kvactor.actor import StoreActor
from kvactor.core.admission import MAX_MEMTABLES
from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import SHARED, Begin, Commit, Message, Open, Status
from kvactor.core.owner import Owner
from kvactor.core.protocols import StorageFailed
from kvactor.core.records import decode, decode_revision, value_of
from kvactor.core.transaction import LEVEL_OVERHEAD, TRANSACTION_OVERHEAD
from kvactor.errors import (
    InvalidKey,
    KeyNotFound,
    KvactorError,
    OutcomeUnknown,
    Overloaded,
    Stopping,
    StorageFull,
    TooManyTransactions,
    TransactionConflict,
    TransactionTooDeep,
    TransactionTooLarge,
    ValueTooLarge,
    WritesStalled,
)
from kvactor.settings import Settings
from kvactor.storage.directory import Storage, open_directory
from kvactor.storage.memory import MemoryTree
from tests.core.builders import (
    TICK,
    batch,
    delete,
    delete_range,
    get,
    keys,
    put,
    record_in,
    scan,
    value,
)
from tests.core.harness import HeldJournal, HeldTree, OwnerHarness, RecordingReply, SmallJournal

Start = Callable[..., Any]

#: Seconds after which an event that is waited for has failed to happen.
PATIENCE = 10


@pytest.fixture
async def journal() -> HeldJournal:
    return HeldJournal(holding=False)


@pytest.fixture
async def actor(journal: HeldJournal) -> AsyncIterator[StoreActor]:
    actor = StoreActor(Storage(journal, MemoryTree()), Settings(mailbox_size=4))
    await actor.start()
    yield actor
    journal.holding = False
    journal.release()
    await actor.stop()


async def test_p1_only_the_owner_touches_the_store_and_there_is_no_lock(actor: StoreActor) -> None:
    package = Path(kvactor.__file__).parent
    server = [path for path in package.rglob("*.py") if package / "tools" not in path.parents]
    sources = {str(path.relative_to(package)): path.read_text() for path in server}
    locks = re.compile(r"\b(Lock|RLock|Semaphore|BoundedSemaphore|Condition|Barrier)\b")
    assert [name for name, source in sources.items() if locks.search(source)] == []
    # A thread that keeps the time of a stop, and touches nothing.
    assert [name for name, source in sources.items() if "threading" in source] == ["cli/deadline.py"]
    users = {name for name, source in sources.items() if re.search(r"\bStore\(", source)}
    assert users == {"core/owner.py"}
    running = [task for task in asyncio.all_tasks() if task.get_name() == "kvactor-owner"]
    assert running == [actor.done]


def test_p2_queue_order_is_commit_order_is_revision_order() -> None:
    journal = HeldJournal()
    harness = OwnerHarness(journal)
    harness.ask(Open("t"))
    harness.ask(put(b"t", b"t", "t"))
    harness.ask(put(b"t2", b"t", "t"))
    messages: list[Message[Any]] = [put(b"a"), put(b"a", b"2"), Commit("t"), delete(b"a"), put(b"b")]
    replies: list[RecordingReply[Any]] = [RecordingReply() for _ in messages]
    harness.owner.drain(harness.now, [(*one, UNCOUNTED) for one in zip(messages, replies, strict=True)])
    journal.release()
    harness.settle()
    assert [reply.revision for reply in replies] == [1, 2, 3, 4, 5]
    rows = [decode_revision(number, row) for number, row in journal.rows.items()]
    assert [[key for key, _ in row.changes] for row in rows] == [
        [b"a"],
        [b"a"],
        [b"t", b"t2"],
        [b"a"],
        [b"b"],
    ]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]


def test_p3_nothing_is_acknowledged_or_visible_before_it_is_durable() -> None:
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    harness.ask(put(b"a", b"old"))
    harness.ask(put(b"gone"))
    journal.holding = True
    written = harness.ask(put(b"a", b"new"))
    deleted = harness.ask(delete(b"gone"))
    assert not written.answered
    # Others still see what is durable, at once.
    assert value(harness, b"a") == b"old"
    assert harness.ask(get(b"gone")).revision == 2
    assert [key for key, _ in harness.ask(scan()).result.items] == [b"a", b"gone"]
    # An answer that depends on a staged write waits for it: of a failed delete, of a transaction's
    # reads, of a conflict.
    missing = harness.ask(delete(b"gone"))
    harness.ask(Open("t"))
    read = harness.ask(get(b"a", "t"))
    scanned = harness.ask(scan(transaction="t"))
    harness.ask(Begin(SHARED))
    shared = harness.ask(get(b"a", SHARED))
    assert not any(reply.answered for reply in (deleted, missing, read, scanned, shared))
    harness.ask(Open("u"))
    assert value(harness, b"quiet", "u") is None
    conflicting: list[RecordingReply[Any]] = [
        harness.ask(put(b"quiet")),
        harness.ask(get(b"quiet", "u")),
    ]
    assert not any(reply.answered for reply in conflicting)
    journal.release()
    harness.settle()
    assert written.revision == 3
    assert (value_of(record_in(read)), read.revision) == (b"new", 3)
    assert value_of(record_in(shared)) == b"new"
    assert isinstance(missing.error, KeyNotFound) or not missing.answered
    journal.release()
    harness.settle()
    assert isinstance(missing.error, KeyNotFound)
    assert isinstance(conflicting[1].error, TransactionConflict)
    assert [key for key, _ in scanned.result.items] == [b"a"]


async def test_p4_every_asker_gets_exactly_one_answer(actor: StoreActor, journal: HeldJournal) -> None:
    # `RecordingReply` raises when it is answered twice. Here: a value, an error, and requests that
    # are still queued at the stop.
    answers: list[asyncio.Future[Any]] = [actor.ask(put(b"a")), actor.ask(delete(b"none"))]
    await asyncio.wait(answers)
    assert answers[0].result().revision == 1
    assert isinstance(answers[1].exception(), KeyNotFound)
    journal.holding = True
    waiting: list[asyncio.Future[Any]] = [
        actor.ask(put(b"b")),
        actor.ask(put(b"c")),
        actor.ask(get(b"a")),
    ]
    stopping = asyncio.create_task(actor.stop())
    await asyncio.wait({waiting[2]})
    with pytest.raises(Stopping):
        actor.ask(get(b"a"))
    assert not waiting[0].done()
    journal.holding = False
    journal.release()
    await asyncio.wait(waiting)
    await stopping
    assert [future.result().revision for future in waiting] == [2, 3, 1]


async def test_p4_a_stop_waits_for_the_flush_of_what_was_accepted(
    actor: StoreActor, journal: HeldJournal
) -> None:
    journal.holding = True
    waiting = actor.ask(put(b"a"))
    while not journal.pending:
        await asyncio.sleep(0)
    stopping = asyncio.create_task(actor.stop())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not actor.done.done()
    journal.release()
    async with asyncio.timeout(PATIENCE):
        assert (await waiting).revision == 1
        await stopping


def test_p5_a_revision_is_atomic_in_the_store_and_in_the_journal() -> None:
    journal, tree = HeldJournal(), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=1))
    harness.ask(Open("t"))
    for key in (b"x", b"y", b"z"):
        harness.ask(put(key, b"v", "t"))
    harness.ask(Commit("t"))
    assert harness.ask(scan()).result.items == []
    journal.release()
    assert [len(decode_revision(1, row).changes) for row in journal.rows.values()] == [3]
    harness.settle()
    # Now it is being folded, which does not show.
    assert tree.pending
    assert [decode(record).revision for _, record in harness.ask(scan()).result.items] == [1, 1, 1]
    # A server that starts anew on this journal, without the fold, sees all three.
    assert keys(OwnerHarness(journal, MemoryTree())) == [b"x", b"y", b"z"]


def test_p5_a_commit_is_one_revision_however_many_keys_it_has() -> None:
    journal = HeldJournal(holding=False)
    harness = OwnerHarness(journal)
    many = [b"%d" % number for number in range(10_000)]
    assert harness.ask(batch(*map(put, many))).revision == 1
    harness.ask(Open("t"))
    for key in many:
        harness.ask(put(key, b"2", "t"))
    assert harness.ask(Commit("t")).revision == 2
    assert harness.ask(delete_range(b"", None)).revision == 3
    assert [len(decode_revision(*row).changes) for row in journal.rows.items()] == [len(many)] * 3


def test_p6_isolated_transactions_are_strictly_serializable_phantoms_included() -> None:
    # tests/core/test_interleavings.py enumerates; these are the three that everyone asks for.
    pairs: list[list[Message[Any]]] = [
        [get(b"a", "t"), get(b"a", "u")],
        [get(b"b", "t"), get(b"a", "u")],
        [scan(b"a", b"z", transaction="t"), scan(b"a", b"z", transaction="u")],
    ]
    for reads in pairs:
        harness = OwnerHarness()
        for id_ in ("t", "u", "apart"):
            harness.ask(Open(id_))
        harness.ask(get(b"zzz", "apart"))
        first: Message[Any]
        for first in reads:
            harness.ask(first)
        harness.ask(put(b"a", b"t", "t"))
        harness.ask(put(b"a" if reads[0] == get(b"a", "t") else b"b", b"u", "u"))
        harness.ask(put(b"zzzz", b"apart", "apart"))
        assert harness.ask(Commit("t")).revision == 1
        assert isinstance(harness.ask(Commit("u")).error, TransactionConflict)
        assert harness.ask(Commit("apart")).revision == 2
        assert [value_of(record) for _, record in harness.ask(scan()).result.items] == [b"t", b"apart"]


async def test_p7_cancelling_a_waiter_neither_undoes_nor_harms(
    actor: StoreActor, journal: HeldJournal
) -> None:
    journal.holding = True
    asked: list[Message[Any]] = [put(b"a"), get(b"a"), delete(b"a")]
    futures = [actor.ask(message) for message in asked]
    for future in futures:
        future.cancel()
    journal.holding = False
    kept = actor.ask(get(b"a"))
    await asyncio.wait({kept})
    assert kept.result().result is None
    journal.release()
    last = await actor.ask(put(b"last"))
    # The set and the delete both happened.
    assert last.revision == 3
    assert (await actor.ask(get(b"a"))).result is None


async def test_p8_the_mailbox_is_bounded_and_recovers(actor: StoreActor, journal: HeldJournal) -> None:
    journal.holding = True
    waiting: list[asyncio.Future[Any]] = [actor.ask(put(b"%d" % n)) for n in range(4)]
    with pytest.raises(Overloaded):
        actor.ask(get(b"0"))
    while not journal.pending:
        await asyncio.sleep(0)
    # They are staged now, and count as waiting all the same.
    with pytest.raises(Overloaded):
        actor.ask(get(b"0"))
    journal.holding = False
    journal.release()
    await asyncio.wait(waiting)
    assert (await actor.ask(get(b"0"))).revision == 4


def test_p8_keys_values_depth_number_and_size_of_transactions_are_bounded() -> None:
    harness = OwnerHarness(
        settings=Settings(
            max_value_size=10,
            max_transactions=1,
            max_transaction_size=TRANSACTION_OVERHEAD + 32 * LEVEL_OVERHEAD + 1000,
        )
    )
    refused: Sequence[tuple[Message[Any], type[KvactorError]]] = [
        (put(b""), InvalidKey),
        (put(b"k" * 512), InvalidKey),
        (get(b"k" * 512), InvalidKey),
        (delete(b""), InvalidKey),
        (put(b"k", b"v" * 11), ValueTooLarge),
        (Open("u"), TooManyTransactions),
    ]
    harness.ask(Open("t"))
    for message, error in refused:
        assert isinstance(harness.ask(message).error, error)
    assert harness.ask(put(b"k" * 511, b"v" * 10)).error is None
    for _ in range(31):
        harness.ask(Begin("t"))
    assert isinstance(harness.ask(Begin("t")).error, TransactionTooDeep)
    replies = [harness.ask(get(b"%d" % n, "t")) for n in range(20)]
    assert [reply.error for reply in replies[:10]] == [None] * 10
    assert isinstance(replies[-1].error, TransactionTooLarge)
    assert isinstance(harness.ask(scan(b"a", b"b", transaction="t")).error, TransactionTooLarge)
    assert isinstance(harness.ask(put(b"x", b"y", "t")).error, TransactionTooLarge)
    harness.now += 30_000
    assert harness.ask(Open("u")).error is None


@pytest.mark.parametrize("transaction", [SHARED, "t"])
def test_p8_writes_that_inner_levels_have_committed_count_among_a_transactions_bytes(
    transaction: Any,
) -> None:
    harness = OwnerHarness(
        settings=Settings(max_transaction_size=TRANSACTION_OVERHEAD + 3 * LEVEL_OVERHEAD + 5000)
    )
    harness.ask(Open("t"))
    harness.ask(Begin(transaction))
    errors: list[BaseException | None] = []
    for number in range(100):
        harness.ask(Begin(transaction))
        errors.append(harness.ask(put(b"%d" % number, b"v" * 100, transaction)).error)
        assert harness.ask(Commit(transaction)).error is None
    assert errors[:10] == [None] * 10
    assert isinstance(errors[-1], TransactionTooLarge)


def test_p8_writes_stop_below_the_floor_of_free_space_and_reads_go_on() -> None:
    floor = Settings().min_free_space
    journal = SmallJournal(4 * floor)
    harness = OwnerHarness(journal)
    harness.ask(put(b"a"))
    harness.ask(Open("t"))
    harness.ask(put(b"t", b"t", "t"))
    journal.free = floor - 1
    harness.tick()
    refused: list[Message[Any]] = [put(b"b"), Commit("t"), put(b"b", b"1", "t")]
    for message in refused:
        assert isinstance(harness.ask(message).error, StorageFull)
    assert value(harness, b"a") == b"1"
    journal.free = floor + (1 << 20)
    harness.tick()
    assert harness.ask(Commit("t")).revision == 2
    assert harness.ask(put(b"b")).error is None


def test_p8_writes_stall_while_a_fold_is_held_up_and_memory_stays_bounded() -> None:
    size, bound = 100_000, MAX_MEMTABLES * 100_000
    journal, tree = HeldJournal(holding=False), HeldTree()
    harness = OwnerHarness(journal, tree, Settings(memtable_size=size))
    store = harness.owner._store
    big = b"v" * 10_000
    most, accepted = 0, []
    for number in range(2000):
        key = b"%04d" % number
        reply = harness.ask(put(key, big))
        most = max(most, store.unfolded)
        if reply.error is None:
            accepted.append(key)
        else:
            assert isinstance(reply.error, WritesStalled)
    # One memtable is being folded, and behind it are as many bytes as may be: 20 MB were refused.
    assert bound <= most < bound + 11_000
    assert len(accepted) * len(big) < size + bound + 11_000
    assert value(harness, accepted[-1]) == big
    assert keys(harness, limit=1000, values=False) == accepted
    assert harness.ask(Status()).result.stalled
    tree.holding = False
    tree.release()
    harness.settle()
    assert not harness.ask(Status()).result.stalled
    assert all(harness.ask(put(b"%04d" % number, big)).error is None for number in range(2000))
    assert store.unfolded < size + 11_000


def history(journal: HeldJournal) -> list[object]:
    """Play one fixed script, with a slow disk, time, expiry and every kind of message; return all
    replies.
    """
    harness = OwnerHarness(journal, settings=Settings(memtable_size=300, history=3))
    reply: list[RecordingReply[Any]] = []
    for n in range(60):
        harness.now += 7
        journal.holding = n % 5 != 0
        one: Message[Any]
        for one in (
            put(b"k%d" % (n % 7), b"%d" % n, ttl=40 if n % 3 else None),
            Open(f"t{n}"),
            get(b"k1", f"t{n}"),
            put(b"t%d" % n, b"t", f"t{n - 2}"),
            Commit(f"t{n - 3}"),
            Begin(SHARED),
            put(b"s", b"%d" % n, SHARED),
            Commit(SHARED),
            delete(b"k%d" % (n % 11)),
            scan(b"k", b"l", 3, n % 2 == 0),
            Status(),
        ):
            reply.append(harness.ask(one))
        harness.tell(TICK)
        journal.release()
        harness.settle()
    # Many keys that end at once, some of them folded.
    for n in range(20):
        reply.append(harness.ask(put(b"last%d" % n, b"", ttl=10)))
    journal.holding = False
    while journal.pending:
        journal.release()
        harness.settle()
    harness.now += 20
    harness.tell(TICK)
    assert harness.ask(scan(b"last", b"last~")).result.items == []
    return [
        (type(one.error), str(one.error), one.revision) if one.error else (one.revision, one.result)
        for one in reply
    ]


def test_p9_the_same_messages_clock_and_ids_give_the_same_replies_and_the_same_journal() -> None:
    first, second = HeldJournal(), HeldJournal()
    replies = history(first)
    assert len(replies) == 680
    assert {type(reply) for reply in replies} == {tuple}
    assert replies == history(second)
    assert first.rows == second.rows
    assert first.rows


def played() -> str:
    """Return all replies to the script, and the journal's rows."""
    journal = HeldJournal()
    return repr((history(journal), journal.rows))


@pytest.mark.parametrize("seed", ["1", "2"])
def test_p9_replies_and_journal_do_not_depend_on_the_hashes_of_a_process(seed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from tests.test_promises import played; print(played())"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ended.stdout == f"{played()}\n"


def test_p9_a_disk_gets_byte_for_byte_the_rows_that_memory_gets(tmp_path: Path) -> None:
    memory = HeldJournal(holding=False)
    harness = OwnerHarness(memory)
    with open_directory(tmp_path, 1 << 30) as storage:
        news: list[Message[Any]] = []
        owner = Owner(storage.journal, storage.tree, Settings(), news.append)
        for n in range(20):
            harness.now += 1
            harness.ask(put(b"k%d" % (n % 3), b"%d" % n))
            owner.drain(harness.now, [(put(b"k%d" % (n % 3), b"%d" % n), None, UNCOUNTED)])
            while owner.revision <= n:
                while news:
                    owner.drain(harness.now, [(news.pop(0), None, UNCOUNTED)])
        rows = list(storage.journal.replay(0))
    assert rows == [decode_revision(number, row) for number, row in memory.rows.items()]
    assert len(rows) == 20


async def test_p10_a_failed_flush_is_unknown_to_every_waiter_and_ends_the_actor(
    actor: StoreActor, journal: HeldJournal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.holding = True
    flushing = actor.ask(put(b"a"))
    while not journal.pending:
        await asyncio.sleep(0)
    staged = actor.ask(put(b"b"))
    journal.break_down(OSError(5, "Input/output error"))
    queued = actor.ask(get(b"c"))
    await asyncio.wait({actor.done}, timeout=PATIENCE)
    assert actor.done.done()
    for future in (flushing, staged):
        assert isinstance(future.exception(), OutcomeUnknown)
    # The read was in time, or was not; it was answered.
    if queued.exception() is None:
        assert queued.result().result is None
    else:
        assert isinstance(queued.exception(), OutcomeUnknown)
    assert isinstance(actor.done.exception(), StorageFailed)
    with pytest.raises(OutcomeUnknown):
        actor.ask(get(b"a"))
    assert "could not flush up to revision 1: [Errno 5] Input/output error" in caplog.text


async def test_p10_an_unexpected_exception_in_the_owner_is_unknown_to_every_waiter_and_ends_the_actor(
    actor: StoreActor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object, changes: Sequence[object], __: int) -> list[object]:
        # Not in a tick, which would end the owner a second later anyway.
        if changes:
            raise ZeroDivisionError("a fault of ours")
        return []

    monkeypatch.setattr("kvactor.core.store.Store.stage", broken)
    asked: list[asyncio.Future[Any]] = [actor.ask(put(b"a")), actor.ask(put(b"b"))]
    await asyncio.wait({actor.done}, timeout=PATIENCE)
    assert actor.done.done()
    assert [type(future.exception()) for future in asked] == [OutcomeUnknown, OutcomeUnknown]
    assert isinstance(actor.done.exception(), ZeroDivisionError)
    assert "the owner has failed" in caplog.text


def test_p10_a_failed_fold_ends_the_owner_too() -> None:
    tree = HeldTree()
    harness = OwnerHarness(tree=tree, settings=Settings(memtable_size=1))
    harness.ask(put(b"a"))
    tree.pending[0][2](OSError(28, "No space left on device"))
    with pytest.raises(StorageFailed, match="could not fold"):
        harness.settle()


def test_every_promise_has_a_test_that_bears_its_name() -> None:
    names = [name for name in globals() if name.startswith("test_p")]
    assert {int(name.split("_")[1][1:]) for name in names} == set(range(1, 11))
