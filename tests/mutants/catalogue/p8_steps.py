"""The mutants that break P8 in work that is done in steps, and in what a client can make large."""

from typing import Final

from tests.mutants.edits import Edit
from tests.mutants.mutant import Mutant

_CONNECTION: Final = "kvactor/web/connection.py"
_ENDING: Final = "kvactor/web/ending.py"
_PARTS: Final = "kvactor/web/parts.py"
_STEPS: Final = "kvactor/web/steps.py"
_ARRIVING: Final = ("tests/web/test_arriving.py",)
_BATCH: Final = ("tests/web/v1/test_batch.py",)

MUTANTS: Final = (
    Mutant(
        "p8-all-steps-in-one-turn",
        "Work in steps passes no turnstile: many requests make as many steps in each turn of the loop.",
        edits=(
            Edit(
                _STEPS,
                "Turnstile.take",
                find="await self.pass_through()",
                replace="await asyncio.sleep(0)",
            ),
        ),
        killed_by=("tests/web/test_steps.py",),
    ),
    Mutant(
        "p8-what-a-step-takes-is-not-counted",
        "What decoded operations take does not count in the account of memory.",
        edits=(Edit(_STEPS, "Turnstile.take", find="lease.acquire(size)", replace="pass"),),
        killed_by=("tests/web/test_steps.py",),
    ),
    Mutant(
        "p8-decoded-operations-take-nothing",
        "A batch does not say what its operations take.",
        edits=(
            Edit(
                "kvactor/web/v1/batch.py",
                "BatchRoutes.parse_steps",
                find="yield count * ITEM_SIZE + len(request.body)",
                replace="yield None",
            ),
        ),
        killed_by=_BATCH,
    ),
    Mutant(
        "p8-items-of-a-batch-may-be-anything",
        "A body is decoded into millions of objects that are no operations.",
        edits=(Edit("kvactor/api/batch.py", "BatchBody", find="list[AnyOp]", replace="list[Any]"),),
        killed_by=_BATCH,
    ),
    Mutant(
        "p8-a-step-is-as-long-as-its-items",
        "Large values are encoded 300 in a step, since only items are counted.",
        edits=(Edit(_STEPS, "encoded", find="size > step_end", replace="False"),),
        killed_by=_BATCH,
    ),
    Mutant(
        "p8-a-range-of-a-batch-is-encoded-at-once",
        "The page of a range in a batch, as large as all results may be, is encoded in one step.",
        edits=(
            Edit(
                "kvactor/web/v1/batch.py",
                "encode_steps",
                find="_page(result) if isinstance(result, Page) else to_json(operation, result)",
                replace="to_json(operation, result)",
            ),
        ),
        killed_by=_BATCH,
    ),
    Mutant(
        "p8-text-counts-as-much-as-it-has",
        "JSON shows text in six times its bytes, and nobody has counted them.",
        edits=(
            Edit(
                "kvactor/core/executor.py",
                "_shown",
                find="TEXT_SHOWN if is_text(result) else SHOWN",
                replace="SHOWN",
            ),
        ),
        killed_by=("tests/core/test_scheduler.py",),
    ),
    Mutant(
        "p8-tiny-chunks-are-parsed-at-once",
        "A body in 40,000 chunks is parsed in one turn of the loop.",
        edits=(
            Edit(
                _CONNECTION,
                "Connection.data_received",
                find="size > self._at_once and self._in_parts(data)",
                replace="False",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-parts-of-all-connections-in-one-turn",
        "Each connection parses a part in each turn of the loop, however many connections there are.",
        edits=(
            Edit(
                _PARTS,
                "PartsHandler._parse_part",
                find="(turn := self._server.turnstile.enter()) is not None",
                replace="(turn := Turnstile().enter()) is not None",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-what-is-dropped-is-read-in-one-turn",
        "Each client that is refused and goes on sending is read from in each turn of the loop.",
        edits=(
            Edit(
                _ENDING,
                "EndingHandler._drop",
                find="(turn := self._server.turnstile.enter()) is not None",
                replace="(turn := Turnstile().enter()) is not None",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-what-waits-to-be-parsed-is-not-counted",
        "What has arrived and is not parsed yet does not count in the account of memory.",
        edits=(
            Edit(
                _PARTS,
                "PartsHandler._keep_parts",
                find="self._parts.resize(len(self._unparsed))",
                replace="pass",
            ),
        ),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-large-head-is-not-counted",
        "A head of 60 KiB that arrives whole does not count in the account of memory.",
        edits=(Edit(_CONNECTION, "Connection.head_held", find="size <= SMALL", replace="True"),),
        killed_by=_ARRIVING,
    ),
    Mutant(
        "p8-a-lost-connection-keeps-its-response",
        "The error of a lost connection leads to the response, and it to the error.",
        edits=(
            Edit(
                "kvactor/web/aiohttp_response.py",
                "send",
                find="error.__traceback__ = None",
                replace="pass",
            ),
        ),
        killed_by=_ARRIVING,
    ),
)
