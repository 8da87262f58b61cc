"""The open transactions: the shared one, the isolated ones, and those that ended lately. Pure and
synchronous.

The rule: whoever asks for a transaction gets it alive, or an error that says why not. Being idle
for too long, reading something that someone else wrote since, reading a record that has expired
since: each ends a transaction, whenever it is noticed, as if it had been noticed at once.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable

from kvactor.core.messages import AUTOCOMMIT, SHARED, Within
from kvactor.core.records import NEVER
from kvactor.core.transactions import Readers, Transaction
from kvactor.errors import (
    InvalidRequest,
    NoTransaction,
    TooManyTransactions,
    TransactionConflict,
    TransactionNotFound,
    TransactionTooDeep,
)
from kvactor.settings import Settings

log = logging.getLogger(__name__)


class Sessions:
    """Finds, opens and ends transactions. `now` is always milliseconds since the epoch."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.shared: Transaction | None = None
        self.isolated: dict[str, Transaction] = {}
        self.readers = Readers()
        #: ended transactions that may be asked about again: (revision that the outcome rests on,
        #: committed or conflicted)
        self._ended: OrderedDict[str, tuple[int, bool]] = OrderedDict()

    def find(self, within: Within, now: int) -> Transaction | None:
        """Return the transaction that a request speaks in, conflicted or not; None for outside, or
        if the shared one is not open.

        Raises `TransactionNotFound`, or `TransactionConflict` for one that has ended with a conflict.
        """
        if within is AUTOCOMMIT:
            return None
        if within is SHARED:
            transaction = self.shared
            if transaction is not None and now >= transaction.expires_at:
                self._end_idle(transaction)
                return None
        else:
            transaction = self.isolated.get(within)
            if transaction is None:
                depends_on, committed = self._ended.get(within, (0, True))
                if not committed:
                    raise _conflict(depends_on)
                raise TransactionNotFound(
                    "There is no such transaction: it has ended, was idle for too long, or never was."
                )
            if now >= transaction.expires_at:
                self._end_idle(transaction)
                raise TransactionNotFound(
                    f"The transaction was idle for {transaction.idle_timeout / 1000:g} s and "
                    "has been rolled back."
                )
            if now >= transaction.reads.valid_until:
                self._mark_conflicted(transaction, 0)
        if transaction is not None:
            transaction.last_used = now
        return transaction

    def use(self, within: Within, now: int) -> Transaction | None:
        """The same, for a request that needs what was read to be still true: raises
        `TransactionConflict` if it is not.
        """
        if within is SHARED and self.shared is None:
            return None
        transaction = self.find(within, now)
        if transaction is not None and transaction.conflicted:
            raise _conflict(transaction.depends_on)
        return transaction

    def open(self, id_: str, idle_timeout: int | None, now: int) -> Transaction:
        """Open an isolated transaction.

        Raises `InvalidRequest` for a timeout out of bounds, and `TooManyTransactions`.
        """
        settings = self._settings
        limit = int(settings.max_transaction_idle_timeout * 1000)
        if idle_timeout is None:
            idle_timeout = int(settings.transaction_idle_timeout * 1000)
        elif not 0 < idle_timeout <= limit:
            raise InvalidRequest(
                f"A transaction's idle timeout is more than 0 and at most {limit / 1000:g} seconds."
            )
        if len(self.isolated) >= settings.max_transactions:
            self.sweep(now)
            # All that is left for one that conflicted is to be told so, which takes no place.
            for one in [one for one in self.isolated.values() if one.conflicted]:
                self.end(one, committed=False)
        if len(self.isolated) >= settings.max_transactions:
            raise TooManyTransactions(
                f"{settings.max_transactions} transactions are open, which is the limit. Try "
                "again when some have ended."
            )
        transaction = self.isolated[id_] = Transaction(id_, now, idle_timeout)
        return transaction

    def begin(self, within: Within, now: int) -> Transaction:
        """Go one level deeper; opens the shared transaction when it is not open.

        Raises `TransactionTooDeep`.
        """
        transaction = self.use(within, now)
        if transaction is None:
            timeout = int(self._settings.shared_transaction_idle_timeout * 1000)
            transaction = self.shared = Transaction(None, now, timeout or NEVER)
        elif transaction.depth >= self._settings.max_transaction_depth:
            raise TransactionTooDeep(
                f"A transaction has at most {self._settings.max_transaction_depth} levels."
            )
        else:
            transaction.begin()
        return transaction

    def rollback(self, within: Within, now: int, *, whole: bool) -> Transaction:
        """Go one level up, or end it `whole`, and forget what was written.

        A conflicted one may still be ended.
        """
        transaction = self.find(within, now)
        if transaction is None:
            raise NoTransaction("No transaction to rollback")
        if transaction.conflicted and transaction.depth > 1 and not whole:
            raise _conflict(transaction.depends_on)
        transaction.rollback()
        while whole and transaction.depth:
            transaction.rollback()
        if not transaction.depth:
            self.end(transaction)
        return transaction

    def to_commit(self, within: Within, now: int) -> Transaction:
        """Return the transaction to be committed.

        Raises `NoTransaction`; ends a conflicted one, and raises `TransactionConflict`.
        """
        transaction = self.find(within, now)
        if transaction is None:
            raise NoTransaction("No transaction to commit")
        if transaction.conflicted:
            self.end(transaction, committed=False)
            raise _conflict(transaction.depends_on)
        return transaction

    def committed(self, within: Within) -> int | None:
        """Return what the commit of an ended transaction rests on, for a client that lost the
        answer; None if it is not known.
        """
        depends_on, committed = (
            self._ended.get(within, (0, False)) if isinstance(within, str) else (0, False)
        )
        return depends_on if committed else None

    def end(self, transaction: Transaction, committed: bool | None = None) -> None:
        """Close a transaction; remember the outcome of a commit, if that is how it ended."""
        self.readers.forget(transaction)
        if transaction.id is None:
            self.shared = None
            return
        del self.isolated[transaction.id]
        if committed is not None:
            self._ended[transaction.id] = (transaction.depends_on, committed)
            if len(self._ended) > self._settings.remembered_transactions:
                self._ended.popitem(last=False)

    def invalidate_readers(self, keys: Iterable[bytes], revision: int) -> None:
        """Doom every transaction that has read one of `keys`: `revision` has changed them."""
        if not self.readers:
            return
        for key in keys:
            for reader in self.readers.of(key):
                self._mark_conflicted(reader, revision)

    def sweep(self, now: int) -> None:
        """Roll back what was idle for too long, and warn of a shared transaction that stays open."""
        for transaction in [one for one in self.isolated.values() if now >= one.expires_at]:
            self._end_idle(transaction)
        shared = self.shared
        if shared is None:
            return
        if now >= shared.expires_at:
            self._end_idle(shared)
        elif (
            now - shared.opened_at >= self._settings.shared_transaction_warning * 1000
            and not shared.warned
        ):
            shared.warned = True
            log.warning(
                "the shared transaction has been open for %d s, at depth %d: what /set and "
                "/delete write is neither durable nor visible to /v1 until POST /commit; "
                "POST /rollback forgets it",
                (now - shared.opened_at) // 1000,
                shared.depth,
            )

    def _end_idle(self, transaction: Transaction) -> None:
        self.end(transaction)
        log.log(
            logging.WARNING if transaction.id is None else logging.DEBUG,
            "%s transaction was idle for %g s and has been rolled back",
            "the shared" if transaction.id is None else "an isolated",
            transaction.idle_timeout / 1000,
        )

    def _mark_conflicted(self, transaction: Transaction, revision: int) -> None:
        self.readers.forget(transaction)
        transaction.mark_conflicted(revision)


def _conflict(depends_on: int) -> TransactionConflict:
    error = TransactionConflict(
        "Something that this transaction has read was changed by someone else. Start it "
        "again from the beginning."
    )
    error.depends_on = depends_on
    return error
