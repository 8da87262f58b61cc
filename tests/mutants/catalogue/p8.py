"""The mutants that break P8: everything is bounded; each limit is a setting."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p8-a-restart-forgets-expiry",
        "Recovery does not note when the records in the journal expire. Readers do not see them, but "
        "they are never removed.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store.recover",
                find="""
                    if record is not None and expiry_of(record) != NEVER:
                        heapq.heappush(self.memtable.expiring, (expiry_of(record), key))
                """,
                replace="",
            ),
        ),
        killed_by=("tests/core/test_owner.py",),
    ),
    Mutant(
        "p8-bodies-have-no-time-limit",
        "A body has no time limit, because the keep-alive timeout seems to set one.",
        edits=(
            Edit(
                "kvactor/web/body_reader.py",
                "BodyReader.read",
                find="self._deadlines.limit(self._timeout)",
                replace="self._deadlines.limit(None)",
            ),
        ),
        killed_by=("tests/web/test_errors.py::test_a_body_that_does_not_arrive_in_time_gets_408",),
    ),
    Mutant(
        "p8-ended-transactions-are-kept-for-ever",
        "The outcomes of ended transactions are never forgotten.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager._close",
                find="""
                    if len(self._ended) > self._settings.remembered_transactions:
                        self._ended.popitem(last=False)
""",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_transaction_manager.py::"
                "test_a_commit_that_is_repeated_waits_for_the_same_flush_and_gets_the_same_answer"
            ),
        ),
    ),
    Mutant(
        "p8-held-answers-do-not-count",
        "Answers that wait for a flush do not count as waiting. With a slow disk, there is no bound.",
        edits=(
            Edit(
                "kvactor/actor.py",
                "StoreActor._run",
                find="self._room = mailbox_size - len(owner.held) - backlog",
                replace="",
            ),
        ),
        killed_by=("tests/test_promises.py::test_p8_the_mailbox_is_bounded_and_recovers",),
    ),
    Mutant(
        "p8-what-is-read-under-an-idempotency-key-has-no-bound",
        "A batch under an idempotency key may read, and so keep, as much as a response holds.",
        edits=(
            Edit(
                "kvactor/core/executor.py",
                "Executor._run",
                find="room = min(room, settings.max_idempotency_reads)",
                replace="pass",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
    Mutant(
        "p8-kept-responses-are-not-bound-together",
        "A new response that is kept does not displace the oldest.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.commit",
                find="""
                    if transaction.keeps:
                        self._make_room(context, changes)
                """,
                replace="",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
    Mutant(
        "p8-a-forgotten-response-is-given-back-twice",
        "The room of a kept response is given back when it is forgotten, and once more.",
        edits=(
            Edit(
                "kvactor/core/kept.py",
                "KeptResponses.forget",
                find="self.size -= size",
                replace="self.size -= 2 * size",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
    Mutant(
        "p8-a-swept-response-is-not-given-back",
        "The room of responses that have expired is not given back when they are swept.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.sweep",
                find="self._kept.forget(keys)",
                replace="",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
    Mutant(
        "p8-a-restart-does-not-count-kept-responses",
        "A restart begins to count kept responses at nothing.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.__init__",
                find="sorted(store.hidden())",
                replace="()",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
    Mutant(
        "p8-a-restart-counts-kept-responses-by-key",
        "After a restart, not the oldest kept responses are forgotten, but those with the least keys.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.__init__",
                find="sorted(store.hidden())",
                replace="store.hidden()",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
    Mutant(
        "p8-a-repeated-response-is-not-counted",
        "A kept response that is repeated takes memory that is not in the account.",
        edits=(
            Edit(
                "kvactor/core/idempotency.py",
                "find",
                find="context.lease.acquire(len(value))",
                replace="pass",
            ),
        ),
        killed_by=("tests/core/test_idempotency_bounds.py",),
    ),
    Mutant(
        "p8-idle-transactions-are-not-swept",
        "An idle transaction ends when somebody asks for it, but not by itself. Those of clients that "
        "have gone away stay.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner._tick",
                find="self._transactions.sweep(context.now)",
                replace="",
            ),
        ),
        killed_by=("tests/core/test_transaction_manager.py",),
    ),
    Mutant(
        "p8-inner-commits-do-not-count",
        "What an inner commit merges does not count. A transaction can hold any number of bytes.",
        edits=(
            Edit(
                "kvactor/core/overlay.py",
                "Overlay.merge",
                find="self.size += above.size",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/test_promises.py::"
                "test_p8_writes_that_inner_levels_have_committed_count_among_a_transactions_bytes"
            ),
        ),
    ),
    Mutant(
        "p8-long-polls-do-not-count",
        "Only streams count as followers of the changes. Any number of requests can wait for the next "
        "one.",
        edits=(
            Edit(
                "kvactor/web/v1/changes.py",
                "ChangeRoutes.changes",
                find="""
                    if asked.wait:
                        with self._subscribers.subscribed():
                            return await self._page(exchange, asked, since, prefix)
""",
                replace="",
            ),
        ),
        killed_by=("tests/web/v1/test_changes.py",),
    ),
    Mutant(
        "p8-reads-do-not-count",
        "What a transaction has read does not count among its bytes.",
        edits=(
            Edit(
                "kvactor/core/conflicts.py",
                "ConflictIndex.saw_key",
                find="reader.grow(reader.reads.size - before)",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/test_promises.py::"
                "test_p8_keys_values_depth_number_and_size_of_transactions_are_bounded"
            ),
        ),
    ),
    Mutant(
        "p8-garbage-is-never-cleaned",
        "What ended transactions have read stays in the index while nobody reads in a transaction.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner.drain",
                find="self._conflicts.clean(CLEANED_PER_DRAIN)",
                replace="False",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_conflicts.py::"
                "test_the_owner_cleans_one_piece_in_each_drain_and_goes_on_without_traffic"
            ),
        ),
    ),
    Mutant(
        "p8-small-garbage-waits-behind-large",
        "Garbage is taken out in the order in which readers ended. Thousands of small read sets wait "
        "behind a large one, and a write of a key that all of them have read walks all.",
        edits=(
            Edit(
                "kvactor/core/conflicts.py",
                "ConflictIndex.forget",
                find="heapq.heappush(self._garbage, (reads.entries, number, reads))",
                replace="heapq.heappush(self._garbage, (0, number, reads))",
            ),
        ),
        killed_by=(
            ("tests/core/test_conflicts.py::test_small_read_sets_do_not_pile_up_behind_a_large_one"),
        ),
    ),
    Mutant(
        "p8-reading-adds-garbage-faster-than-it-goes",
        "Reads take no garbage out.",
        edits=(
            Edit(
                "kvactor/core/conflicts.py",
                "ConflictIndex.saw_key",
                find="self.clean(CLEANED_PER_READ)",
                replace="pass",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_conflicts.py::"
                "test_garbage_never_exceeds_what_open_readers_had_at_their_peak"
            ),
        ),
    ),
    Mutant(
        "p8-read-sets-are-not-given-back",
        "The bytes of a read set that is dropped count for ever.",
        edits=(
            Edit(
                "kvactor/core/conflicts.py",
                "ConflictIndex.forget",
                find="reader.grow(-reads.size)",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_conflicts.py::"
                "test_what_a_forgotten_reader_has_read_counts_as_garbage_until_it_is_cleaned"
            ),
        ),
    ),
    Mutant(
        "p8-dropped-levels-are-not-given-back",
        "The bytes of a level that is rolled back count for ever.",
        edits=(
            Edit(
                "kvactor/core/transaction.py",
                "Transaction._pop",
                find="self.grow(-LEVEL_OVERHEAD - top.size)",
                replace="",
            ),
        ),
        killed_by=("tests/core/test_sizes.py::test_what_is_dropped_is_given_back",),
    ),
    Mutant(
        "p8-writes-that-a-conflict-drops-are-not-given-back",
        "The bytes of the writes that a conflict drops count until the transaction ends.",
        edits=(
            Edit(
                "kvactor/core/transaction.py",
                "Transaction.conflict",
                find="self.grow(-sum(overlay.size for overlay in self.overlays))",
                replace="",
            ),
        ),
        killed_by=("tests/core/test_sizes.py::test_what_is_dropped_is_given_back",),
    ),
    Mutant(
        "p8-swallowed-ranges-cost-nothing",
        "A range that takes in a hundred thousand others costs no work.",
        edits=(
            Edit(
                "kvactor/core/conflicts.py",
                "ReadSet.saw_range",
                find="work.charge(COALESCE)",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_conflicts.py::"
                "test_a_range_that_takes_in_others_is_charged_for_each_or_refused_without_a_change"
            ),
        ),
    ),
    Mutant(
        "p8-conflicts-cost-nothing",
        "A write that makes a thousand transactions conflict costs as much as one that makes none.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._invalidate_readers",
                find="context.spent += CONFLICT",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_conflicts.py::"
                "test_a_write_is_charged_for_each_transaction_that_conflicts"
            ),
        ),
    ),
    Mutant(
        "p8-the-journal-grows",
        "The memtable is folded when it is full, but not when a few keys are overwritten often. The "
        "journal is never trimmed.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer._fold_if_full",
                find="memtable.grown >= limit * rewrites",
                replace="False",
            ),
        ),
        killed_by=(
            "tests/core/test_owner.py::test_the_journal_is_trimmed_even_if_only_one_key_is_written",
        ),
    ),
    Mutant(
        "p8-writes-never-stall",
        "Writes are accepted without a bound while a fold is under way.",
        edits=(
            Edit(
                "kvactor/core/admission.py",
                "Admission.stalled",
                find="store.folding and store.unfolded >= self._max_unfolded",
                replace="False",
            ),
        ),
        killed_by=("tests/core/test_stalls.py",),
    ),
    Mutant(
        "p8-writes-do-not-stall-for-a-flush",
        "Writes are accepted without a bound while a flush takes long: commits fill the memory.",
        edits=(
            Edit(
                "kvactor/core/admission.py",
                "Admission.stalled",
                find="store.unflushed >= MAX_UNFLUSHED",
                replace="False",
            ),
        ),
        killed_by=("tests/core/test_stalls.py",),
    ),
    Mutant(
        "p8-readings-of-history-are-unbounded",
        "Any number of readings of old revisions can wait for the journal.",
        edits=(
            Edit(
                "kvactor/core/feed.py",
                "Feed.read",
                find="len(self._reading) >= MAX_READINGS and since not in self._reading",
                replace="False",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_feed.py::"
                "test_readings_are_bounded_and_a_reader_over_the_bound_is_refused"
            ),
        ),
    ),
    Mutant(
        "p8-sweeps-multiply",
        "Each tick begins a sweep, although the last one goes on. The owner's time goes to sweeps.",
        edits=(
            Edit("kvactor/core/owner.py", "Owner._tick", find="not self._sweeping", replace="True"),
        ),
        killed_by=("tests/core/test_expiry.py",),
    ),
    Mutant(
        "p8-a-page-of-another-site-may-ask",
        "A request that says that it comes from a page of another site is let in.",
        edits=(
            Edit(
                "kvactor/web/guard.py",
                "",
                find='_OWN_SITES = ("same-origin", "none")',
                replace='_OWN_SITES = ("same-origin", "none", "cross-site")',
            ),
        ),
        killed_by=("tests/web/test_headers.py::test_sec_fetch_site_decides_when_it_is_there",),
    ),
    Mutant(
        "p8-lists-of-headers-are-remembered-without-bound",
        "Each list of headers that comes is remembered for ever.",
        edits=(
            Edit(
                "kvactor/web/guard.py",
                "RequestGuard._examine",
                find="self.lists.clear()",
                replace="pass",
            ),
        ),
        killed_by=("tests/web/test_origins.py",),
    ),
    Mutant(
        "p8-free-pages-go-back-once",
        "Free pages of the heap go back to the system at the start alone.",
        edits=(
            Edit(
                "kvactor/cli/heap.py",
                "keep_small",
                find="asyncio.get_running_loop().call_later(PAUSE, keep_small)",
                replace="pass",
            ),
        ),
        killed_by=(
            "tests/cli/test_heap.py::test_free_pages_go_back_again_and_again_while_the_loop_runs",
        ),
    ),
)
