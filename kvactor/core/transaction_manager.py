"""The transactions: the shared one, the isolated ones, and how the last ones have ended.

The rule: a request gets its transaction open, or an error that says why not. A transaction that was
idle for too long, or has seen a record that has expired since, ends no later than its next request.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from kvactor.core.conflicts import ConflictIndex
from kvactor.core.context import Context
from kvactor.core.keyspace import Keyspace
from kvactor.core.messages import (
    AUTOCOMMIT,
    SHARED,
    Begin,
    Commit,
    Drop,
    Inspect,
    Open,
    Rollback,
    TransactionRef,
    TransactionState,
)
from kvactor.core.priority import CONFLICTS, QUEUE, MustWait
from kvactor.core.records import NEVER
from kvactor.core.transaction import Event, Kind, State, Transaction, refusal
from kvactor.core.work import STEP, Steps
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

#: Ends that are remembered.
_REMEMBERED: Final = (State.COMMITTED, State.CONFLICTED)


class _Ended(msgspec.Struct, frozen=True):
    """How a transaction has ended, the revision that this depends on, and its conflicts in a row."""

    state: State = State.EXPIRED
    depends_on: int = 0
    conflicts: int = 0


class TransactionManager:
    """Opens, finds and ends transactions; does what their messages ask for."""

    def __init__(
        self, keys: Keyspace, conflicts: ConflictIndex[Transaction], settings: Settings
    ) -> None:
        self._keys = keys
        self._conflicts = conflicts
        self._settings = settings
        self.shared: Transaction | None = None
        self.isolated: dict[str, Transaction] = {}
        #: by id
        self._ended: OrderedDict[str, _Ended] = OrderedDict()

    # -- messages --

    def open(self, context: Context, message: Open) -> TransactionState:
        """See `Open`."""
        settings = self._settings
        limit = int(settings.max_transaction_idle_timeout * 1000)
        idle_timeout = message.idle_timeout
        if idle_timeout is None:
            idle_timeout = int(settings.transaction_idle_timeout * 1000)
        elif not 0 < idle_timeout <= limit:
            raise InvalidRequest(
                f"A transaction's idle timeout is more than 0 and at most {limit / 1000:g} seconds."
            )
        if len(self.isolated) >= settings.max_transactions:
            context.spent += len(self.isolated) * STEP // 4
            self.sweep(context.now)
            # A conflicted one is remembered as such, and needs no place.
            for one in [one for one in self.isolated.values() if one.state is State.CONFLICTED]:
                self._close(one)
        if len(self.isolated) >= settings.max_transactions:
            raise TooManyTransactions(
                f"{settings.max_transactions} transactions are open, which is the limit. Try "
                "again when some have ended."
            )
        priority, conflicts = self._keys.priority, self._conflicts_of(message.retry_of)
        prior = conflicts >= CONFLICTS and priority.wait > 0
        held = priority.held(context.now)
        if prior and not context.waited_until and (held or priority.queue):
            if priority.queue < QUEUE:
                raise MustWait(context.now + priority.queue_wait)
            prior = False
        transaction = Transaction(
            Kind.ISOLATED, context.now, idle_timeout, message.id, context.lease.another()
        )
        transaction.conflicts = conflicts
        transaction.lease.resize(transaction.size)
        self.isolated[message.id] = transaction
        if prior and not held:
            priority.grant(transaction, context.lease.client, context.now)
            self._use_up(message.retry_of)
        return _state(transaction)

    def _conflicts_of(self, retried: str | None) -> int:
        """Return how often a transaction has conflicted in a row, and close it if it has."""
        if retried is None:
            return 0
        transaction = self.isolated.get(retried)
        if transaction is not None and transaction.state is State.CONFLICTED:
            self._close(transaction)
        ended = self._ended.get(retried, _Ended())
        return ended.conflicts if ended.state is State.CONFLICTED else 0

    def _use_up(self, retried: str | None) -> None:
        """Forget the conflicts of a transaction: it gives one try priority."""
        if retried is not None and retried in self._ended:
            self._ended[retried] = msgspec.structs.replace(self._ended[retried], conflicts=0)

    def inspect(self, context: Context, message: Inspect) -> TransactionState:
        """See `Inspect`."""
        transaction = self.use(context, message.transaction)
        if transaction is None:
            raise NoTransaction("No transaction is open")
        return _state(transaction)

    def begin(self, context: Context, message: Begin) -> TransactionState:
        """See `Begin`."""
        transaction = self.use(context, message.transaction)
        if transaction is None:
            timeout = int(self._settings.shared_transaction_idle_timeout * 1000)
            transaction = self.shared = Transaction(
                Kind.SHARED, context.now, timeout or NEVER, lease=context.lease.another()
            )
        elif transaction.depth >= self._settings.max_transaction_depth:
            raise TransactionTooDeep(
                f"A transaction has at most {self._settings.max_transaction_depth} levels."
            )
        else:
            transaction.begin()
        return _state(transaction)

    def rollback(self, context: Context, message: Rollback) -> TransactionState:
        """See `Rollback`."""
        transaction = self._find(context, message.transaction)
        if transaction is None:
            raise NoTransaction("No transaction to rollback")
        transaction.rollback()
        if not transaction.depth:
            self._close(transaction)
        return _state(transaction)

    def drop(self, context: Context, message: Drop) -> TransactionState:
        """See `Drop`."""
        transaction = self._find(context, message.transaction)
        if transaction is None:
            raise NoTransaction("No transaction to rollback")
        transaction.rollback_all()
        self._close(transaction)
        return _state(transaction)

    def commit(self, context: Context, message: Commit) -> Steps[TransactionState]:
        """See `Commit`. A commit that is repeated gets the answer of the first."""
        ref = message.transaction
        if isinstance(ref, str) and ref in self._ended:
            ended = self._ended[ref]
            if ended.state is State.COMMITTED:
                context.depend_on(ended.depends_on)
                return TransactionState(ref, 0)
        transaction = self._find(context, ref)
        if transaction is None:
            raise NoTransaction("No transaction to commit")
        outermost = transaction.depth == 1
        try:
            # All revisions that it has read are durable before its commit is acknowledged.
            if outermost:
                context.depend_on(transaction.depends_on)
            yield from self._keys.commit(context, transaction)
        except TransactionConflict:
            self._close(transaction)
            raise
        if outermost:
            transaction.depends_on = context.depends_on
            self._close(transaction)
        return _state(transaction)

    # -- finding --

    def use(self, context: Context, ref: TransactionRef) -> Transaction | None:
        """Return the open transaction of a request; None outside of a transaction.

        Raises `TransactionNotFound` and `TransactionConflict`.
        """
        if ref is AUTOCOMMIT or (ref is SHARED and self.shared is None):
            return None
        transaction = self._find(context, ref)
        if transaction is not None:
            transaction.move(Event.USE)
        return transaction

    @contextmanager
    def savepoint(self, context: Context, ref: TransactionRef, kind: Kind) -> Iterator[Transaction]:
        """Give one request a level of its own, on its transaction or, outside of one, on a new one of
        `kind`. Whoever uses it commits that level; after an exception it is dropped.
        """
        transaction = self.use(context, ref)
        own = transaction is None
        if transaction is None:
            transaction = Transaction(kind, context.now)
        else:
            transaction.begin()
        depth = transaction.depth
        try:
            yield transaction
        finally:
            # It has as many levels as before if it was not committed.
            if transaction.depth == depth:
                transaction.abandon()
            if own:
                self._conflicts.forget(transaction)

    def pause(self, context: Context, transaction: Transaction) -> Steps[None]:
        """End a step of a request. Raises `TransactionConflict` and `TransactionNotFound` if the next
        one finds the transaction ended.
        """
        yield
        self._touch(context, transaction)
        transaction.move(Event.USE)

    def _touch(self, context: Context, transaction: Transaction) -> None:
        if context.now >= transaction.reads.valid_until:
            self._conflicts.forget(transaction)
            transaction.conflict(0)
        transaction.last_used = context.now

    def _find(self, context: Context, ref: TransactionRef) -> Transaction | None:
        """Return the same as `use`, but also a conflicted transaction."""
        if isinstance(ref, str):
            transaction = self.isolated.get(ref)
            if transaction is None:
                ended = self._ended.get(ref, _Ended())
                raise refusal(ended.state, ended.depends_on)
        elif ref is SHARED and self.shared is not None:
            transaction = self.shared
        else:
            return None
        if context.now >= transaction.expires_at:
            self._expire(transaction)
            if transaction.kind is Kind.SHARED:
                return None
            raise TransactionNotFound(
                f"The transaction was idle for {transaction.idle_timeout / 1000:g} s and "
                "has been rolled back."
            )
        self._touch(context, transaction)
        return transaction

    # -- ends --

    def sweep(self, now: int) -> None:
        """Expire transactions that are idle at `now`; warn of a shared transaction that stays open."""
        # One that is being committed does not expire.
        idle = [one for one in self.isolated.values() if one.depth and now >= one.expires_at]
        for transaction in idle:
            self._expire(transaction)
        shared = self.shared
        if shared is None or not shared.depth:
            return
        age = now - shared.opened_at
        if now >= shared.expires_at:
            self._expire(shared)
        elif age >= self._settings.shared_transaction_warning * 1000 and not shared.warned:
            shared.warned = True
            log.warning(
                "the shared transaction has been open for %d s, at depth %d: what /set and "
                "/delete write is neither durable nor visible to /v1 until POST /commit; "
                "POST /rollback forgets it",
                age // 1000,
                shared.depth,
            )

    def stop(self) -> None:
        """Roll back the shared transaction, and say so: its writes are lost."""
        if self.shared is not None:
            depth = self.shared.depth
            self.shared.rollback_all()
            self._close(self.shared)
            log.warning("the shared transaction was open at depth %d and has been rolled back", depth)

    def _expire(self, transaction: Transaction) -> None:
        transaction.expire()
        self._close(transaction)
        shared = transaction.kind is Kind.SHARED
        log.log(
            logging.WARNING if shared else logging.DEBUG,
            "%s transaction was idle for %g s and has been rolled back",
            "the shared" if shared else "an isolated",
            transaction.idle_timeout / 1000,
        )

    def _close(self, transaction: Transaction) -> None:
        self._conflicts.forget(transaction)
        transaction.lease.close()
        if transaction.id is None:
            self.shared = None
            return
        del self.isolated[transaction.id]
        if transaction.state in _REMEMBERED:
            self._ended[transaction.id] = _Ended(
                transaction.state, transaction.depends_on, transaction.conflicts
            )
            if len(self._ended) > self._settings.remembered_transactions:
                self._ended.popitem(last=False)


def _state(transaction: Transaction) -> TransactionState:
    if not transaction.depth:
        return TransactionState(transaction.id, 0)
    return TransactionState(transaction.id, transaction.depth, transaction.expires_at)
