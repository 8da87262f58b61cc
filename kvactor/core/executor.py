"""Executes requests on keys: one operation, or a batch of them.

The rule: a batch is done whole or not at all. It runs on a savepoint: a level of its own on its
transaction, or, outside of one, a transaction of its own.
"""

from typing import TypeVar

from kvactor.core import idempotency
from kvactor.core.keyspace import Context, Keyspace, Page
from kvactor.core.messages import Batch, BatchResponse, Check, Execute, Presence, TransactionRef
from kvactor.core.operations import Result
from kvactor.core.records import MISSING, revision_of
from kvactor.core.transaction import Kind, Transaction
from kvactor.core.transaction_manager import TransactionManager
from kvactor.errors import AnswerTooLarge, BatchTooLarge, ChecksFailed, KvactorError
from kvactor.settings import Settings

R = TypeVar("R")

#: Bytes that one plain range returns at most, so that the owner is free soon: a client asks for the
#: next page.
PAGE_SIZE = 256 * 1024


class Executor:
    """Executes requests on `keys`, in the transactions of `transactions`."""

    def __init__(self, keys: Keyspace, transactions: TransactionManager, settings: Settings) -> None:
        self._keys = keys
        self._transactions = transactions
        self._settings = settings
        self._page_size = min(PAGE_SIZE, settings.max_body_size)

    def execute(self, context: Context, message: Execute[R]) -> R:
        """See `Execute`."""
        context.max_result_size = self._page_size
        transaction = self._transactions.use(context, message.transaction)
        return message.operation.run(self._keys, context, transaction)

    def batch(self, context: Context, message: Batch) -> BatchResponse:
        """See `Batch`."""
        if len(message.checks) + len(message.operations) > self._settings.max_batch_size:
            raise BatchTooLarge(
                f"A batch has at most {self._settings.max_batch_size} checks and operations."
            )
        context.max_result_size = self._settings.max_body_size
        key = message.idempotency_key
        with _Savepoint(self._keys, self._transactions, context, message.transaction) as savepoint:
            transaction = savepoint.transaction
            if key is not None and (kept := idempotency.find(self._keys, context, transaction, key)):
                return BatchResponse(*kept)
            self._check(context, transaction, message.checks)
            results = self._run(context, transaction, message)
            if key is not None:
                idempotency.keep(self._keys, context, transaction, key, results)
        return BatchResponse(savepoint.revision, results)

    def _check(self, context: Context, transaction: Transaction, checks: tuple[Check, ...]) -> None:
        failed = [
            index for index, one in enumerate(checks) if not self._holds(context, transaction, one)
        ]
        if failed:
            raise ChecksFailed(
                "Not all of the batch's checks hold, so nothing was done.", details={"failed": failed}
            )

    def _holds(self, context: Context, transaction: Transaction, check: Check) -> bool:
        self._keys.check_key(check.key)
        record = self._keys.read(context, transaction, check.key)
        if isinstance(check.precondition, Presence):
            return (record is MISSING) is (check.precondition is Presence.ABSENT)
        return record is not MISSING and revision_of(record) in check.precondition

    def _run(self, context: Context, transaction: Transaction, message: Batch) -> list[Result]:
        results: list[Result] = []
        room = self._settings.max_body_size
        for index, operation in enumerate(message.operations):
            try:
                result: Result = operation.run(self._keys, context, transaction)
                room -= _size(result)
                if room < 0:
                    raise AnswerTooLarge(
                        f"The batch's results have more than {self._settings.max_body_size} bytes. "
                        "Read less at once."
                    )
            except KvactorError as error:
                error.details = {**error.details, "operation": index}
                raise
            results.append(result)
        return results


class _Savepoint:
    """A level of its own for one request: committed if that succeeds, else rolled back."""

    def __init__(
        self,
        keys: Keyspace,
        transactions: TransactionManager,
        context: Context,
        ref: TransactionRef,
    ) -> None:
        self._keys = keys
        self._context = context
        #: the revision that its commit has made; 0: none
        self.revision = 0
        transaction = transactions.use(context, ref)
        if transaction is None:
            transaction = Transaction(Kind.AUTOCOMMIT, context.now)
        else:
            transaction.begin()
        self.transaction = transaction

    def __enter__(self) -> "_Savepoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.revision = self._keys.commit(self._context, self.transaction)
        else:
            self.transaction.rollback()


def _size(result: Result) -> int:
    """Return the bytes of a result, about."""
    if isinstance(result, Page):
        return sum(len(key) + len(record) for key, record in result.items)
    return len(result) if isinstance(result, bytes) else 0
