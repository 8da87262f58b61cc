"""Units: what is done whole or not at all, and once however often it is asked for. Pure and
synchronous.

The rule: a unit is a level of its own on the transaction that it speaks in, or on a new one that
nobody else sees. It ends whole: merged into the level below, staged as one revision, or forgotten. An
idempotency key is kept by the same unit, as a hidden record that holds what came of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from kvactor.core import records
from kvactor.core.access import Access
from kvactor.core.messages import Batch, Delete, DeleteRange, IdempotencyKey, Set, Within
from kvactor.core.records import HIDDEN, MISSING, NEVER
from kvactor.core.store import Store
from kvactor.core.transactions import Transaction
from kvactor.errors import IdempotencyKeyReused
from kvactor.settings import Settings

R = TypeVar("R")
M = TypeVar("M", Set, Delete, DeleteRange, Batch)

_keep = msgspec.msgpack.Encoder().encode


class Units:
    """Runs what messages ask for in units, through `access`."""

    def __init__(self, access: Access, store: Store, settings: Settings) -> None:
        self._access = access
        self._store = store
        self._settings = settings

    def run(self, message: M, kind: type[R], do: Callable[[Transaction, M], R]) -> tuple[int, R]:
        """Do something in a unit, and return the revision that it made (0: none, or none yet) and its
        result. If it was done before under the same idempotency key, return what came of it then.

        Raises `IdempotencyKeyReused`, and what doing it raises.
        """
        head, once = self._store.head, message.once
        with self._unit(message.within) as unit:
            if once is None:
                result = do(unit, message)
            else:
                key = HIDDEN + once.key
                kept = self._access.read(unit, key)
                if kept is not MISSING:
                    return records.revision_of(kept), _repeat(once, kept, kind)
                result = do(unit, message)
                window = int(self._settings.idempotency_window * 1000)
                kept = records.draft(once.fingerprint + _keep(result), "", self._access.now + window)
                self._access.write(unit, key, kept)
        return self._store.head if self._store.head > head else 0, result

    @contextmanager
    def _unit(self, within: Within) -> Iterator[Transaction]:
        """Yield a transaction with a level of its own on top, and see to how that ends."""
        transaction = self._access.transaction(within)
        if transaction is None:
            transaction = Transaction(None, self._access.now, NEVER)
        else:
            transaction.begin()
        try:
            yield transaction
        except BaseException:
            transaction.rollback()
            raise
        changes = transaction.commit()
        if changes:
            self._access.stage(changes.items())


def _repeat(once: IdempotencyKey, kept: bytes, kind: type[R]) -> R:
    value, size = records.value_of(kept), len(once.fingerprint)
    if value[:size] != once.fingerprint:
        raise IdempotencyKeyReused(
            "The Idempotency-Key was used for another request. Choose a new one for each."
        )
    return msgspec.msgpack.decode(value[size:], type=kind)
