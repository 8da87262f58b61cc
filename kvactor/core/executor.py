"""Executes requests on keys: one operation, or a batch of them.

The rule: a batch is done whole or not at all. It runs on a savepoint: a level of its own on its
transaction, or, outside of one, a transaction of its own. It takes as many steps as it needs.
"""

from types import GeneratorType
from typing import Final, TypeVar

from kvactor.core import idempotency
from kvactor.core.context import Context, Page
from kvactor.core.keyspace import Keyspace
from kvactor.core.memory import SMALL
from kvactor.core.messages import (
    AUTOCOMMIT,
    Batch,
    BatchResponse,
    Check,
    Execute,
    Presence,
    is_long,
)
from kvactor.core.operations import Range, Result
from kvactor.core.records import MISSING, created_of, is_text, revision_of
from kvactor.core.transaction import Kind, Transaction
from kvactor.core.transaction_manager import TransactionManager
from kvactor.core.work import LOOKUP, UNLIMITED, Steps
from kvactor.errors import (
    AnswerTooLarge,
    ChecksFailed,
    KvactorError,
    TransactionConflict,
    TransactionTooLarge,
    batch_too_large,
)
from kvactor.settings import Settings

R = TypeVar("R")

#: Bytes that one plain range returns, and units of work that it walks, at most, so that the owner is
#: free soon: a client asks for the next page.
PAGE_SIZE = 256 * 1024
PAGE_WORK = 2000

#: Times its own bytes that a result takes at most while JSON is made of it, with that JSON. Text may
#: consist of characters that JSON shows in six bytes.
SHOWN: Final = 2
TEXT_SHOWN: Final = 7


class Executor:
    """Executes requests on `keys`, in the transactions of `transactions`."""

    def __init__(self, keys: Keyspace, transactions: TransactionManager, settings: Settings) -> None:
        self._keys = keys
        self._transactions = transactions
        self._settings = settings
        self._page_size = min(PAGE_SIZE, settings.max_body_size)

    def execute(self, context: Context, message: Execute[R]) -> R:
        """See `Execute`."""
        operation = message.operation
        paged = isinstance(operation, Range)
        if paged:
            # Whatever it is, it may be held then.
            size = context.lease.share(TEXT_SHOWN * self._page_size, TEXT_SHOWN * SMALL)
            context.max_result_size = size // TEXT_SHOWN
            context.max_walk = PAGE_WORK
        transaction = self._transactions.use(context, message.transaction)
        result = operation.run(self._keys, context, transaction)
        if isinstance(result, bytes):
            if len(result) > SMALL:
                context.lease.acquire(len(result))
        elif paged and isinstance(result, Page) and (size := _shown(result)) > SMALL:
            context.lease.acquire(size)
        return result

    def batch(self, context: Context, message: Batch) -> Steps[BatchResponse]:
        """See `Batch`.

        A long batch takes several steps. Outside of a transaction it runs as an isolated one, because
        others may write between its steps; after a conflict, or if its read set is too large, it runs
        again, exclusively.
        """
        if len(message.checks) + len(message.operations) > self._settings.max_batch_size:
            raise batch_too_large(self._settings.max_batch_size)
        context.require(
            len(message.checks) * LOOKUP + sum(one.least_work for one in message.operations)
        )
        context.max_result_size = self._settings.max_body_size
        held = context.lease.size
        if not is_long(message):
            context.step_end = UNLIMITED
            return (yield from self._attempt(context, message, Kind.AUTOCOMMIT))
        try:
            return (yield from self._attempt(context, message, Kind.ISOLATED))
        except (TransactionConflict, TransactionTooLarge):
            if message.transaction is not AUTOCOMMIT:
                raise
        self._keys.enter_exclusive(context)
        context.limit += self._settings.max_request_work
        context.lease.resize(held)
        return (yield from self._attempt(context, message, Kind.AUTOCOMMIT))

    def _attempt(self, context: Context, message: Batch, kind: Kind) -> Steps[BatchResponse]:
        key = message.idempotency_key
        with self._transactions.savepoint(context, message.transaction, kind) as transaction:
            if key is not None and (kept := idempotency.find(self._keys, context, transaction, key)):
                return BatchResponse(*kept)
            yield from self._check(context, transaction, message.checks)
            results = yield from self._run(context, transaction, message)
            if key is not None:
                idempotency.keep(self._keys, context, transaction, key, results)
            revision = yield from self._keys.commit(context, transaction)
        return BatchResponse(revision, results)

    def _check(
        self, context: Context, transaction: Transaction, checks: tuple[Check, ...]
    ) -> Steps[None]:
        failed: list[int] = []
        for index, one in enumerate(checks):
            if context.spent >= context.step_end:
                yield from self._transactions.pause(context, transaction)
            if not self._holds(context, transaction, one):
                failed.append(index)
        if failed:
            raise ChecksFailed(
                "Not all of the batch's checks hold, so nothing was done.", details={"failed": failed}
            )

    def _holds(self, context: Context, transaction: Transaction, check: Check) -> bool:
        self._keys.check_key(check.key)
        record = self._keys.read(context, transaction, check.key, value=False)
        if isinstance(check.precondition, Presence):
            return (record is MISSING) is (check.precondition is Presence.ABSENT)
        if record is MISSING:
            return False
        revision = revision_of(record)
        named = revision in check.precondition
        return named or (not revision and -created_of(record) in check.precondition)

    def _run(self, context: Context, transaction: Transaction, message: Batch) -> Steps[list[Result]]:
        results: list[Result] = []
        held = 0
        settings, keyed = self._settings, message.idempotency_key is not None
        room = settings.max_body_size
        if keyed:
            room = min(room, settings.max_idempotency_reads)
        for index, operation in enumerate(message.operations):
            if context.spent >= context.step_end:
                yield from self._transactions.pause(context, transaction)
            try:
                done: Result | Steps[Result] = operation.run(self._keys, context, transaction)
                result: Result = (
                    (yield from self._in_steps(context, transaction, done))
                    if isinstance(done, GeneratorType)
                    else done  # type: ignore[assignment]  # a generator is of no other type
                )
                room -= _size(result)
                if room < 0:
                    raise self._too_large(keyed)
                held += _shown(result)
                if held > SMALL:
                    context.lease.acquire(held)
                    held = 0
            except KvactorError as error:
                error.details = {**error.details, "operation": index}
                raise
            results.append(result)
        return results

    def _too_large(self, keyed: bool) -> AnswerTooLarge:
        settings = self._settings
        if keyed and settings.max_idempotency_reads < settings.max_body_size:
            return AnswerTooLarge(
                f"The batch reads more than {settings.max_idempotency_reads} bytes, which is all that "
                "is kept for an Idempotency-Key. Read less at once, or without a key."
            )
        return AnswerTooLarge(
            f"The batch's results have more than {settings.max_body_size} bytes. Read less at once."
        )

    def _in_steps(
        self, context: Context, transaction: Transaction, steps: Steps[Result]
    ) -> Steps[Result]:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield from self._transactions.pause(context, transaction)


def _shown(result: Result) -> int:
    """Return how many bytes a result takes at most, with its JSON. They count while the request can
    still be refused.
    """
    if isinstance(result, Page):
        return sum(len(key) + _shown(record) for key, record in result.items)
    if not isinstance(result, bytes):
        return 0
    return len(result) * (TEXT_SHOWN if is_text(result) else SHOWN)


def _size(result: Result) -> int:
    """Return the bytes of a result, about."""
    if isinstance(result, Page):
        return sum(len(key) + len(record) for key, record in result.items)
    return len(result) if isinstance(result, bytes) else 0
