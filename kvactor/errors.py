"""Every outcome that a caller can act on: one class each, with a stable `code`. No HTTP in here.

The web layer maps these classes to statuses in one table of its own (`web/errors.py`). An exception
that is not a `KvactorError` is a fault of ours or of the machine, and ends the process (promise
P10).
"""

from collections.abc import Mapping
from typing import ClassVar


class KvactorError(Exception):
    """An expected outcome. The message is a whole sentence for the caller.

    `depends_on` is the revision, perhaps only staged, that has to be durable before the outcome may
    be told (P3; 0: none); `revision` is the store's revision at which it happened, and `time` the
    owner's clock then, in milliseconds since the epoch, once the owner has answered with it.
    """

    code: ClassVar[str] = "error"
    depends_on: int = 0
    revision: int | None = None
    time: int | None = None

    def __init__(self, sentence: str, details: Mapping[str, object] | None = None) -> None:
        super().__init__(sentence)
        #: what a program may want to know beyond the code, by name
        self.details: Mapping[str, object] = details or {}


# -- what was asked for cannot be understood or is over a limit --


class InvalidRequest(KvactorError):
    """Is raised when a request cannot be read: malformed JSON, a wrong type, a bad path."""

    code = "invalid_request"


class CrossOrigin(KvactorError):
    """Is raised when a request comes from a page of another origin."""

    code = "cross_origin"


class HostNotAllowed(KvactorError):
    """Is raised when `Host` is not a name of this server, as after DNS rebinding."""

    code = "host_not_allowed"


class KeyAndValueRequired(KvactorError):
    """Is raised when `/set` gets no key or no value."""

    code = "key_and_value_required"


class InvalidKey(KvactorError):
    """Is raised when a key is empty, longer than the limit, or not UTF-8."""

    code = "invalid_key"


class ValueTooLarge(KvactorError):
    """Is raised when a value is larger than `max_value_size`."""

    code = "value_too_large"


class BodyTooLarge(KvactorError):
    """Is raised when a request's body is larger than `max_body_size`."""

    code = "body_too_large"


class UnsupportedEncoding(KvactorError):
    """Is raised when a request's body has a `Content-Encoding`. Values are stored as they are sent."""

    code = "unsupported_encoding"


class BodyTimeout(KvactorError):
    """Is raised when a request's body has not arrived within `body_timeout`."""

    code = "body_timeout"


class RequestTooExpensive(KvactorError):
    """Is raised when a request would walk more than `max_request_work` units of work. Nothing was done.

    Details: `limit`.
    """

    code = "request_too_expensive"


# -- keys --


class KeyNotFound(KvactorError):
    """Is raised when a key to be read or deleted has no value."""

    code = "key_not_found"


class PreconditionFailed(KvactorError):
    """Is raised when a write's precondition does not hold. Nothing was done."""

    code = "precondition_failed"


class ChecksFailed(KvactorError):
    """Is raised when a check of a batch fails. Nothing was done.

    Details: `failed`, the indexes of the failed checks.
    """

    code = "checks_failed"


class NotAnInteger(KvactorError):
    """Is raised when an increment finds a value that is not an integer, or when the sum does not fit
    into 64 bits.
    """

    code = "not_an_integer"


class BatchTooLarge(KvactorError):
    """Is raised when a batch has more than `max_batch_size` checks and operations."""

    code = "batch_too_large"


def batch_too_large(maximum: int) -> BatchTooLarge:
    """Return the error for a batch of more than `maximum` checks and operations."""
    return BatchTooLarge(f"A batch has at most {maximum} checks and operations.")


class RangeTooLarge(KvactorError):
    """Is raised when a range to delete has more than `max_batch_size` keys.

    Details: `limit`.
    """

    code = "range_too_large"


class AnswerTooLarge(KvactorError):
    """Is raised when a batch's results would be larger than `max_body_size`, or what it reads
    under an idempotency key larger than `max_idempotency_reads`. Nothing was done.
    """

    code = "answer_too_large"


class IdempotencyKeyReused(KvactorError):
    """Is raised when an idempotency key was used for a different request."""

    code = "idempotency_key_reused"


class RecordDamaged(KvactorError):
    """Is raised when a stored record fails its checksum. Other keys are not affected."""

    code = "record_damaged"


# -- transactions --


class NoTransaction(KvactorError):
    """Is raised by commit and rollback when the shared transaction is not open."""

    code = "no_transaction"


class TransactionNotFound(KvactorError):
    """Is raised when an isolated transaction does not exist, has ended, or was idle for too long."""

    code = "transaction_not_found"


class TransactionConflict(KvactorError):
    """Is raised when another client wrote a key or range that an isolated transaction has read."""

    code = "transaction_conflict"


class TransactionTooDeep(KvactorError):
    """Is raised by begin when a transaction has `max_transaction_depth` levels."""

    code = "transaction_too_deep"


class TransactionTooLarge(KvactorError):
    """Is raised when a transaction's writes and read set would exceed `max_transaction_size`. Nothing
    was done; an open transaction goes on without it.
    """

    code = "transaction_too_large"


class TooManyTransactions(KvactorError):
    """Is raised when `max_transactions` isolated transactions are open already."""

    code = "too_many_transactions"


# -- the feed --


class HistoryGone(KvactorError):
    """Is raised when the requested revisions are not kept any more.

    Details: `oldest`, the oldest kept revision.
    """

    code = "history_gone"


class RevisionInFuture(KvactorError):
    """Is raised when the requested revision does not exist yet."""

    code = "revision_in_future"


class TooManySubscribers(KvactorError):
    """Is raised when `max_subscribers` requests follow the changes already."""

    code = "too_many_subscribers"


# -- the server's own state --


class Overloaded(KvactorError):
    """Is raised when `mailbox_size` requests wait, or large requests use `max_in_flight_size` bytes.
    Nothing was done; try again.
    """

    code = "overloaded"


class TooManyConnections(KvactorError):
    """Is raised when `max_connections` connections are open already. Nothing was done; try again."""

    code = "too_many_connections"


class Stopping(KvactorError):
    """Is raised when the server is shutting down. Nothing was done."""

    code = "stopping"


class StorageFull(KvactorError):
    """Is raised by writes that would leave less than `min_free_space` free, by deletions only near a
    quarter of it. Nothing was done; reads go on.
    """

    code = "storage_full"


class WritesStalled(KvactorError):
    """Is raised by writes while folds or flushes fall behind, or make room on the disk. Nothing was
    done; reads go on; try again.
    """

    code = "writes_stalled"


class OutcomeUnknown(KvactorError):
    """Is raised to all waiting requests when a flush or the owner fails. Their writes may be durable
    or not.
    """

    code = "outcome_unknown"


# -- starting --


class DataDirectoryError(KvactorError):
    """Is raised at start when the data directory cannot be used; the base of the three below."""

    code = "data_directory"


class DirectoryInUse(DataDirectoryError):
    """Is raised when another process holds the data directory's lock."""

    code = "directory_in_use"


class FormatUnsupported(DataDirectoryError):
    """Is raised when the data directory was written by a newer layout, or is not one of ours."""

    code = "format_unsupported"


class DataDamaged(DataDirectoryError):
    """Is raised when the journal or the tree cannot be read, or they do not fit each other."""

    code = "data_damaged"
