"""The mutants that break P9: the same messages, clock and ids give the same answers and the same
journal.
"""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p9-expired-keys-are-swept-in-the-order-of-hashes",
        "A set gathers the expired keys. Their order in the revision that removes them differs from "
        "process to process.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store.expired",
                find="dict.fromkeys(candidates)",
                replace="set(candidates)",
            ),
        ),
        killed_by=(
            "tests/test_promises.py::test_p9_replies_and_journal_do_not_depend_on_the_hashes_of_a_process",
        ),
    ),
    Mutant(
        "p9-expiry-uses-the-machines-clock",
        "The machine's clock decides when a key expires, and not the drain's.",
        edits=(
            Edit(
                "kvactor/core/operations.py",
                "Set.run",
                find="expires_at = NEVER if self.ttl is None else context.now + self.ttl",
                replace="""
                    import time

                    now = time.time_ns() // 1_000_000
                    expires_at = NEVER if self.ttl is None else now + self.ttl
""",
            ),
        ),
        killed_by=(
            "tests/test_imports.py",
            (
                "tests/test_promises.py::"
                "test_p9_the_same_messages_clock_and_ids_give_the_same_replies_and_the_same_journal"
            ),
        ),
    ),
    Mutant(
        "p9-the-clock-runs-backwards",
        "The owner believes a clock that is set back. Expired records come back.",
        edits=(
            Edit("kvactor/core/owner.py", "Owner.drain", find="max(now, self._now)", replace="now"),
        ),
        killed_by=("tests/core/test_expiry.py::test_time_stands_still_when_the_clock_is_set_back",),
    ),
)
