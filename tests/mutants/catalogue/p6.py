"""The mutants that break P6: isolated transactions are strictly serializable, ranges included."""

from typing import Final

from tests.mutants.catalogue.killers import HOT_STRESS, SIMULATION, STRESS
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p6-a-deletion-does-not-count-as-a-read",
        "A transaction learns from a deletion whether the key exists. That does not count as a read.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.exists",
                find="return self.read(context, transaction, key, value=False) is not MISSING",
                replace="""
                    entry = transaction.get(key)
                    if entry is MISSING:
                        return self._read_staged(context, key, value=False) is not MISSING
                    return entry is not TOMBSTONE
""",
            ),
        ),
        killed_by=(HOT_STRESS, STRESS),
    ),
    Mutant(
        "p6-garbage-conflicts",
        "A reader that was forgotten is still found by what it has read, until that is cleaned. An "
        "ended transaction conflicts, and the owner fails.",
        edits=(
            Edit(
                "kvactor/core/conflicts.py",
                "ConflictIndex.forget",
                find="del self._readers[number]",
                replace="",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_conflicts.py::"
                "test_a_reader_that_is_forgotten_and_reads_again_comes_last"
            ),
        ),
    ),
    Mutant(
        "p6-a-range-excludes-its-first-key",
        "The first key of a range does not count as part of it. A phantom can appear at its edge.",
        edits=(
            Edit(
                "kvactor/core/intervals.py",
                "stab",
                find="node.start <= key",
                replace="node.start < key",
            ),
        ),
        killed_by=(HOT_STRESS,),
    ),
    Mutant(
        "p6-a-reverse-page-records-the-wrong-half",
        "A reverse page that is cut short counts as read from its start to its last key, as a forward "
        "one does. The half that it shows is not recorded.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.scan",
                find='(last, end) if reverse else (start, last + b"\\0")',
                replace='(start, last + b"\\0")',
            ),
        ),
        killed_by=(
            "tests/core/test_owner.py::test_a_page_that_was_cut_short_has_read_nothing_beyond_its_last_item",
        ),
    ),
    Mutant(
        "p6-a-scan-ignores-expiry",
        "A scan shows a record that expires later, and does not note that. The transaction goes on "
        "with the expired record.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._saw_range",
                find="""
                    for key, record in items:
                        if transaction.get(key) is MISSING:
                            transaction.reads.saw_record(record)
""",
                replace="",
            ),
        ),
        killed_by=(
            "tests/core/test_expiry.py::test_a_transaction_that_saw_a_record_conflicts_once_that_has_expired",
        ),
    ),
    Mutant(
        "p6-an-inner-rollback-forgets-reads",
        "An inner rollback forgets what the transaction has read, as if that were undone, too.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager.rollback",
                find="transaction.rollback()",
                replace="""
                    transaction.rollback()
                    self._conflicts.forget(transaction)
""",
            ),
        ),
        killed_by=(
            "tests/core/test_transaction_manager.py::test_an_inner_rollback_keeps_the_read_set",
            SIMULATION,
        ),
    ),
    Mutant(
        "p6-expiry-is-no-conflict",
        "A transaction goes on with a record that it has read and that has expired since.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager._touch",
                find="""
                    if context.now >= transaction.reads.valid_until:
                        self._conflicts.forget(transaction)
                        transaction.conflict(0)
""",
                replace="",
            ),
        ),
        killed_by=(
            "tests/core/test_expiry.py::test_a_transaction_that_saw_a_record_conflicts_once_that_has_expired",
        ),
    ),
    Mutant(
        "p6-missing-keys-do-not-count-as-read",
        "A transaction finds that a key is missing, and that is not recorded as a read. Two "
        "transactions can both create the key.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.read",
                find="self._conflicts.saw_key(transaction, key)",
                replace="pass",
            ),
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.read",
                find="transaction.reads.saw_record(record)",
                replace="""
                    self._conflicts.saw_key(transaction, key)
                    transaction.reads.saw_record(record)
""",
            ),
        ),
        killed_by=(HOT_STRESS,),
    ),
    Mutant(
        "p6-only-a-commit-tells-of-a-conflict",
        "Only the commit tells of a conflict. Until then, a live transaction sees two states mixed.",
        edits=(
            Edit(
                "kvactor/core/transaction_manager.py",
                "TransactionManager.use",
                find="""
                    if transaction is not None:
                        transaction.move(Event.USE)
""",
                replace="",
            ),
            Edit(
                "kvactor/core/transaction.py",
                "Transaction.begin",
                find="self.move(Event.BEGIN)",
                replace="",
            ),
        ),
        killed_by=(
            "tests/core/test_transaction_manager.py::test_a_conflicted_transaction_refuses_every_request_but_its_end",
            SIMULATION,
        ),
    ),
    Mutant(
        "p6-only-one-increment-of-a-flush-counts",
        "An increment adds to the durable value and takes that for the newest one. Of several "
        "increments in one flush, only one counts.",
        edits=(
            Edit(
                "kvactor/core/operations.py",
                "Increment.run",
                find="record = keys.read(context, transaction, self.key)",
                replace="""
                    record = keys.read(context, transaction, self.key)
                    if self.key not in transaction.overlays[-1]:
                        record = keys.read(context, None, self.key)
""",
            ),
        ),
        killed_by=(
            (
                "tests/process/test_counters.py::"
                "test_a_counter_that_many_increment_at_once_misses_and_doubles_none"
            ),
        ),
    ),
    Mutant(
        "p6-phantoms-are-let-through",
        "A scan records the keys that it finds as read, but not the range. Nobody notices a key that "
        "appears in the range later.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._saw_range",
                find="self._conflicts.saw_range(transaction, start, end, context)",
                replace="""
                    for key, _ in items:
                        self._conflicts.saw_key(transaction, key)
""",
            ),
        ),
        killed_by=(STRESS,),
    ),
    Mutant(
        "p6-stale-reads-while-folding",
        "While a memtable is being folded, reads ask it before the newer one. They may return an "
        "overwritten value.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store._look_at_memtables",
                find="(self.memtable, self._frozen)",
                replace="(self._frozen, self.memtable)",
            ),
        ),
        killed_by=(
            "tests/core/test_owner.py::test_a_key_overwritten_while_it_is_folded_has_its_new_value",
        ),
    ),
    Mutant(
        "p6-transactions-do-not-see-what-is-staged",
        "An isolated transaction reads what is durable. It overwrites a write that is staged before "
        "its read and flushed after it, without seeing it.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._read_staged",
                find="store.staged",
                replace="store.durable",
            ),
        ),
        killed_by=(HOT_STRESS, SIMULATION),
    ),
    Mutant(
        "p6-write-skew",
        "Only readers of a key that also write it are doomed. Two transactions that each write what "
        "the other has read both commit.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._invalidate_readers",
                find="""
                    self._conflicts.forget(reader)
                    reader.conflict(revision)
""",
                replace="""
                    if reader.depth > 1 or key in reader.overlays[0]:
                        self._conflicts.forget(reader)
                        reader.conflict(revision)
""",
            ),
        ),
        killed_by=(STRESS,),
    ),
    Mutant(
        "p6-expiry-is-not-ordered",
        "Plain reads judge expiry by the clock while a write waits for the disk. A reader misses an "
        "expired key and does not see the write that has still read it.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.read",
                find="context.now = min(context.now, store.horizon)",
                replace="",
            ),
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace.scan",
                find="context.now = min(context.now, store.horizon)",
                replace="",
            ),
        ),
        killed_by=("tests/core/test_expiry.py",),
    ),
    Mutant(
        "p6-an-expiry-is-told-before-readers-see-it",
        "A request is told at once that a key has expired, while plain reads still see the key.",
        edits=(
            Edit(
                "kvactor/core/keyspace.py",
                "Keyspace._depend_on_expiry",
                find="expires_at > self._store.horizon",
                replace="False",
            ),
        ),
        killed_by=("tests/core/test_expiry.py",),
    ),
    Mutant(
        "p6-the-tag-of-a-draft-comes-back",
        "A rollback gives the numbers of its drafts free, so a later draft has the tag of one that a "
        "client has seen.",
        edits=(
            Edit(
                "kvactor/core/transaction.py",
                "Transaction.number_draft",
                find="self.drafts += 1",
                replace="self.drafts = 1 + sum(len(overlay) for overlay in self.overlays)",
            ),
        ),
        killed_by=(
            (
                "tests/core/test_owner.py::"
                "test_a_draft_has_a_number_that_never_comes_back_in_its_transaction"
            ),
            "tests/web/v1/test_keys.py::test_the_etag_of_a_draft_never_comes_back_for_another_value",
        ),
    ),
    Mutant(
        "p6-the-tag-of-a-draft-is-that-of-another-transactions",
        "The tag of a draft is its number, which drafts of other transactions have, too.",
        edits=(
            Edit(
                "kvactor/web/entity_tags.py",
                "_hash",
                find="as_bytes(transaction)",
                replace="b''",
            ),
        ),
        killed_by=("tests/web/v1/test_keys.py", "tests/web/test_entity_tags.py"),
    ),
    Mutant(
        "p6-a-weak-tag-matches-in-if-match",
        "If-Match compares weakly: a client that knows only an equivalent value may replace it.",
        edits=(
            Edit(
                "kvactor/web/entity_tags.py",
                "precondition",
                find="weak != _WEAK",
                replace="True",
            ),
        ),
        killed_by=("tests/web/v1/test_keys.py", "tests/web/test_entity_tags.py"),
    ),
    Mutant(
        "p6-a-weak-tag-matches-in-if-match-of-a-read",
        "If-Match of a read compares weakly.",
        edits=(
            Edit(
                "kvactor/web/entity_tags.py",
                "Tags.strong",
                find="""return self.any or ("", tag.strip('"')) in self.names""",
                replace="return self.weak(tag)",
            ),
        ),
        killed_by=("tests/web/v1/test_keys.py", "tests/web/test_entity_tags.py"),
    ),
    Mutant(
        "p6-a-transaction-is-named-twice",
        "Of two headers with a transaction one counts, and the client does not know which.",
        edits=(
            Edit(
                "kvactor/web/guard.py",
                "RequestGuard._examine",
                find="count > 1 and name in ONCE",
                replace="False",
            ),
        ),
        killed_by=(
            ("tests/web/test_headers.py::test_a_header_that_comes_once_is_refused_if_it_comes_twice"),
        ),
    ),
    Mutant(
        "p6-a-repeated-header-hides-behind-a-known-list",
        "A list of headers that has come before is not examined again, though one comes twice now.",
        edits=(
            Edit(
                "kvactor/web/guard.py",
                "RequestGuard.check",
                find="self.lists.get(names) if len(names) == len(headers) else None",
                replace="self.lists.get(names)",
            ),
        ),
        killed_by=(
            (
                "tests/web/test_origins.py::"
                "test_a_list_of_headers_that_is_known_is_still_refused_when_one_comes_twice"
            ),
        ),
    ),
)
