"""Idempotency keys: the response to a write is kept, and repeated.

The rule: it is kept by the same revision as the write, as a hidden record, so a crash keeps both or
neither. A write that is refused keeps nothing. What a batch may read under a key is bounded, because
that is kept, too; together the responses are bounded by `kept`.
"""

import msgspec

from kvactor.core import records
from kvactor.core.context import Context
from kvactor.core.keyspace import Keyspace
from kvactor.core.memory import SMALL
from kvactor.core.operations import Result
from kvactor.core.records import HIDDEN, MISSING
from kvactor.core.transaction import Transaction
from kvactor.errors import IdempotencyKeyReused


class IdempotencyKey(msgspec.Struct, frozen=True):
    """A client's key, hashed, and a hash of the request's method, target, body and deciding headers."""

    key: bytes
    fingerprint: bytes


_encode = msgspec.msgpack.Encoder().encode
#: Version 0.1 has kept the result of a single operation without a list.
_decode = msgspec.msgpack.Decoder(list[Result] | bool | int).decode


def find(
    keys: Keyspace, context: Context, transaction: Transaction, key: IdempotencyKey
) -> tuple[int, list[Result]] | None:
    """Return the revision and the results of the write that was done under `key`; None: no write.

    Raises `IdempotencyKeyReused` if that was another request, and `Overloaded`.
    """
    kept = keys.read(context, transaction, HIDDEN + key.key)
    if kept is MISSING:
        return None
    value, size = records.value_of(kept), len(key.fingerprint)
    if len(value) > SMALL:
        context.lease.acquire(len(value))
    if value[:size] != key.fingerprint:
        raise IdempotencyKeyReused(
            "The Idempotency-Key was used for another request. Choose a new one for each."
        )
    results = _decode(value[size:])
    return records.revision_of(kept), results if isinstance(results, list) else [results]


def keep(
    keys: Keyspace,
    context: Context,
    transaction: Transaction,
    key: IdempotencyKey,
    results: list[Result],
) -> None:
    """Keep the results of a write for `idempotency_window` seconds, or until newer ones need its room.

    Raises as every write.
    """
    expires_at = context.now + int(keys.settings.idempotency_window * 1000)
    transaction.keeps = True
    kept = records.draft(key.fingerprint + _encode(results), "", expires_at)
    keys.write(context, transaction, HIDDEN + key.key, kept)
