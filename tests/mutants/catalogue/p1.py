"""The mutants that break P1: one owner: a single coroutine owns the data in memory, and no lock
guards it.
"""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

MUTANTS: Final = (
    Mutant(
        "p1-a-read-bypasses-the-mailbox",
        "The web layer reads the store itself and does not ask the owner, because a read harms nobody.",
        edits=(
            Edit(
                "kvactor/web/dispatcher.py",
                "Dispatcher.ask",
                find="return self._actor.ask(message, lease)",
                replace="""
                    from kvactor.core.messages import AUTOCOMMIT, Execute
                    from kvactor.core.operations import Get

                    operation = message.operation if isinstance(message, Execute) else None
                    if isinstance(operation, Get) and message.transaction is AUTOCOMMIT:
                        import asyncio

                        owner = self._actor._owner
                        record = owner._store.durable.get(operation.key, owner._now)
                        future = asyncio.get_running_loop().create_future()
                        future.set_result(Answer(owner.revision, record, owner._now))
                        return future
                    return self._actor.ask(message, lease)
""",
            ),
        ),
        killed_by=("tests/test_ownership.py",),
    ),
    Mutant(
        "p1-a-tick-bypasses-the-mailbox",
        "The timer hands a tick to the owner itself, beside the owner's coroutine. The tick does not "
        "wait in the mailbox.",
        edits=(
            Edit(
                "kvactor/actor.py",
                "StoreActor._tick",
                find="self._post(Tick(self._free_space()))",
                replace=(
                    "self._owner.drain(self._clock(), [(Tick(self._free_space()), None, UNCOUNTED)])"
                ),
            ),
        ),
        killed_by=(
            (
                "tests/test_ownership.py::"
                "test_p1_only_the_owners_coroutine_touches_its_objects_while_the_disk_is_at_work"
            ),
        ),
    ),
    Mutant(
        "p1-applied-in-the-journals-thread",
        "The journal's thread applies a flush and answers its askers. That saves a turn of the loop.",
        edits=(
            Edit(
                "kvactor/core/writer.py",
                "Writer._flush",
                find="post(Flushed(head, error))",
                replace="self._flushed(Flushed(head, error))",
            ),
        ),
        killed_by=("tests/test_ownership.py",),
    ),
    Mutant(
        "p1-other-threads-fill-the-mailbox",
        "Other threads put their news into the mailbox themselves. The loop does not see it until "
        "something else happens.",
        edits=(
            Edit(
                "kvactor/actor.py",
                "StoreActor._post",
                find="self._loop.call_soon_threadsafe(self._put, (message, None, UNCOUNTED))",
                replace="self._put((message, None, UNCOUNTED))",
            ),
        ),
        killed_by=("tests/test_ownership.py",),
    ),
    Mutant(
        "p1-two-servers-on-one-directory",
        "The lock of a data directory is shared, so that a backup can hold it, too. A second server "
        "gets it.",
        edits=(
            Edit(
                "kvactor/storage/directory.py", "_lock", find="fcntl.LOCK_EX", replace="fcntl.LOCK_SH"
            ),
        ),
        killed_by=("tests/storage/test_lmdb.py::test_a_directory_has_one_user_at_a_time",),
    ),
)
