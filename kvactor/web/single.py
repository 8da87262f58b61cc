"""Requests of one write: plain, or, with a precondition or an idempotency key, a batch of one.

The rule: a client that sent one write sees one write. The response and the errors of the batch say
nothing of a batch.
"""

from typing import Any

from kvactor.core.idempotency import IdempotencyKey
from kvactor.core.messages import (
    AUTOCOMMIT,
    Answer,
    Batch,
    BatchResponse,
    Check,
    Execute,
    Message,
    Precondition,
    TransactionRef,
)
from kvactor.core.operations import Delete, DeleteRange, Set
from kvactor.errors import ChecksFailed, KvactorError, PreconditionFailed


def write(
    operation: Set | Delete,
    transaction: TransactionRef,
    key: IdempotencyKey | None,
    precondition: Precondition | None = None,
) -> Message[Any]:
    """Return the message of one write."""
    if key is None and precondition is None:
        return Execute(operation, transaction)
    checks = () if precondition is None else (Check(operation.key, precondition),)
    return Batch((operation,), checks, transaction, key)


def delete_range(
    operation: DeleteRange, transaction: TransactionRef, key: IdempotencyKey | None
) -> Batch:
    """Return the message that deletes a range. It has several steps, so it is always a batch."""
    return Batch((operation,), (), transaction, key)


def outcome(message: Message[Any], answer: Answer[Any]) -> tuple[int | None, Any]:
    """Return the revision that one write made (None: none, or none yet), and its result."""
    result = answer.result
    if isinstance(result, BatchResponse):
        return result.revision or None, result.results[0]
    autocommit = isinstance(message, Execute) and message.transaction is AUTOCOMMIT
    return (answer.revision if autocommit else None), result


def explain(error: KvactorError) -> KvactorError:
    """Return an error of a batch of one as an error of one write."""
    if isinstance(error, ChecksFailed):
        return PreconditionFailed(
            "The key is not what the precondition says. Read it again, and decide anew."
        )
    error.details = {name: value for name, value in error.details.items() if name != "operation"}
    return error
