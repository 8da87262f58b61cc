"""The mutants that break P2: queue order is commit order is revision order."""

from typing import Final

from tests.mutants.catalogue.killers import SIMULATION
from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p2-a-flush-keeps-one-revision-of-a-key",
        "If several revisions of one flush write the same single key, only the last one goes to the "
        "journal. It overwrites the others anyway.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store.seal",
                find="self._look_at_pending()",
                replace="""
                    newest = {
                        one.changes[0][0]: one
                        for one in self._flushing.revisions
                        if len(one.changes) == 1
                    }
                    self._flushing.revisions = [
                        one
                        for one in self._flushing.revisions
                        if len(one.changes) > 1 or newest[one.changes[0][0]] is one
                    ]
                    self._look_at_pending()
                """,
            ),
        ),
        killed_by=("tests/test_promises.py::test_p2_queue_order_is_commit_order_is_revision_order",),
    ),
    Mutant(
        "p2-an-empty-write-takes-a-revision",
        "A write that changes nothing takes a revision: for example, a transaction that only deletes "
        "missing keys. The journal gets a gap.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store._number",
                find="""
                    if changed:
                        batch = self._staging
                        if not batch.revisions:
                            batch.began = now
                            self.horizon = min(self.horizon, now)
                        self.head += 1
                        batch.revisions.append(Revision(self.head, now, tuple(changed)))
""",
                replace="""
                    self.head += 1
                    if changed:
                        batch = self._staging
                        if not batch.revisions:
                            batch.began = now
                            self.horizon = min(self.horizon, now)
                        batch.revisions.append(Revision(self.head, now, tuple(changed)))
""",
            ),
        ),
        killed_by=(SIMULATION,),
    ),
    Mutant(
        "p2-commits-are-handled-last",
        "A drain handles commits last, so that large transactions do not hold up plain writes.",
        edits=(
            Edit(
                "kvactor/core/owner.py",
                "Owner.drain",
                find="envelopes",
                replace="sorted(envelopes, key=lambda one: isinstance(one[0], Commit))",
            ),
        ),
        killed_by=("tests/test_promises.py::test_p2_queue_order_is_commit_order_is_revision_order",),
    ),
    Mutant(
        "p2-a-step-out-of-order-is-taken",
        "The store seals a batch while another one is flushing. The revisions of the first are lost.",
        edits=(
            Edit(
                "kvactor/core/store.py",
                "Store.seal",
                find="self._flushing.revisions or not self._staging.revisions",
                replace="not self._staging.revisions",
            ),
        ),
        killed_by=(
            "tests/core/test_store.py::test_a_seal_while_a_batch_is_flushing_is_refused_and_no_revision_is_lost",
        ),
    ),
)
