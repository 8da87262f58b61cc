"""Reading and writing keys, within a transaction and outside. Pure and synchronous.

The rule: nothing is told that is not noted. What a read has found staged, the answer rests on (P3),
and so does its transaction; where an isolated transaction has looked beyond its own writes, whoever
writes there dooms it (P6); and what it keeps has a bound (P8).
"""

from collections.abc import Collection
from itertools import islice

from kvactor.core import records
from kvactor.core.messages import Page, Within
from kvactor.core.records import HIDDEN, MISSING, TOMBSTONE, Entry, Missing
from kvactor.core.sessions import Sessions
from kvactor.core.store import Store, alive
from kvactor.core.transactions import Transaction, merge_ranges
from kvactor.errors import InvalidKey, StorageFull, TransactionTooLarge
from kvactor.settings import Settings


class Access:
    """The keys of a store, as the transactions of some sessions see them.

    `now` (milliseconds since the epoch) and `free_space` (bytes) are what the owner has read last.
    `depends_on` is the newest revision that the answer in the making depends on: the owner sets it
    to 0 before each message, and holds the answer until it is durable.
    """

    def __init__(self, store: Store, sessions: Sessions, settings: Settings, free_space: int) -> None:
        self._store = store
        self._sessions = sessions
        self._settings = settings
        self.now = 0
        self.free_space = free_space
        self.depends_on = 0

    def transaction(self, within: Within) -> Transaction | None:
        """Return the transaction that a request speaks in, as `Sessions.use`; None for outside."""
        return self._sessions.use(within, self.now)

    # -- reading --

    def read(self, transaction: Transaction | None, key: bytes) -> bytes | Missing:
        """Return the record that a transaction finds under a key; None stands for outside.

        Raises `RecordDamaged` and `TransactionTooLarge`.
        """
        if transaction is None:
            return self._store.durable.get(key, self.now)
        entry = transaction.get(key)
        if entry is TOMBSTONE:
            return MISSING
        if entry is not MISSING:
            return MISSING if records.expiry_of(entry) <= self.now else entry
        self._depend_on(transaction, self._store.depends_on(key))
        if transaction.id is None:
            return self._store.staged.get(key, self.now)
        self._check_size(transaction, len(key))
        # Before it is looked up: that it is damaged is seen, too.
        self._sessions.readers.saw_key(transaction, key)
        record = self._store.staged.get(key, self.now)
        if record is not MISSING:
            transaction.reads.saw_record(record)
        return record

    def exists(self, key: bytes) -> bool:
        """Is there a record that a write of `key` would replace, staged or not, be it damaged?"""
        self.depends_on = max(self.depends_on, self._store.depends_on(key))
        record = self._store.current(key)
        return record is not MISSING and records.expiry_of(record) > self.now

    def scan(
        self,
        transaction: Transaction | None,
        start: bytes,
        end: bytes | None,
        limit: int,
        room: int,
        *,
        reverse: bool = False,
        values: bool = True,
    ) -> Page:
        """Return at most `limit` records of about `room` bytes between two keys, `end` not among them
        (None: to the last key). Raises as `read`.
        """
        # What is hidden comes behind all keys.
        end = HIDDEN if end is None else min(end, HIDDEN)
        if transaction is None:
            sources = self._store.durable.ranges(start, end, reverse)
        else:
            sources = transaction.ranges(start, end, reverse) + self._store.staged.ranges(
                start, end, reverse
            )
        found = alive(merge_ranges(sources, reverse), self.now)
        items: list[tuple[bytes, bytes]] = []
        if not values:
            found = ((key, records.without_value(record)) for key, record in found)
        for item in islice(found, limit):
            room -= len(item[0]) + len(item[1])
            if room < 0 and items:
                more = True
                break
            items.append(item)
        else:
            more = next(found, None) is not None
        if more:
            # Nothing is said of what lies beyond the last item, and so nothing was read there.
            last = items[-1][0]
            start, end = (last, end) if reverse else (start, last + b"\0")
        if transaction is not None:
            self._depend_on(transaction, self._store.depends_on_range(start, end))
            if transaction.id is not None:
                self._check_size(transaction, len(start) + len(end))
                self._sessions.readers.saw_range(transaction, start, end)
                for key, record in items:
                    if transaction.get(key) is MISSING:
                        transaction.reads.saw_record(record)
        return Page(items, more)

    def _depend_on(self, transaction: Transaction, revision: int) -> None:
        self.depends_on = max(self.depends_on, revision)
        transaction.depends_on = max(transaction.depends_on, revision)

    # -- writing --

    def write(self, transaction: Transaction, key: bytes, entry: Entry) -> None:
        """Let a transaction write a key. Raises `StorageFull` and `TransactionTooLarge`."""
        self.check_space()
        self._check_size(transaction, len(key) + (0 if entry is TOMBSTONE else len(entry)))
        transaction.put(key, entry)

    def stage(self, changes: Collection[tuple[bytes, Entry]]) -> list[tuple[bytes, bytes | None]]:
        """Stage changes as one revision, doom who has read what they touch, and return what they
        have really changed.
        """
        changed = self._store.stage(changes, self.now)
        if changed:
            self._sessions.invalidate_readers((key for key, _ in changed), self._store.head)
            self.depends_on = self._store.head
        else:
            # That there was nothing left to delete may not be durable yet.
            self.depends_on = max(
                self.depends_on, *(self._store.depends_on(key) for key, _ in changes), 0
            )
        return changed

    # -- limits --

    def check_key(self, key: bytes) -> None:
        """Raise `InvalidKey` unless it has a length that a key may have."""
        if not 0 < len(key) <= self._settings.max_key_size:
            raise InvalidKey(
                f"A key has 1 to {self._settings.max_key_size} bytes in UTF-8, not {len(key)}."
            )

    def check_space(self) -> None:
        """Raise `StorageFull` if too little space is left to write."""
        if self.free_space < self._settings.min_free_space:
            raise StorageFull(
                f"Only {self.free_space} bytes are free where the data is, under the floor of "
                f"{self._settings.min_free_space}. Writes are refused until there is more; reads go on."
            )

    def _check_size(self, transaction: Transaction, more: int) -> None:
        if transaction.size + more > self._settings.max_transaction_size:
            raise TransactionTooLarge(
                f"A transaction holds at most {self._settings.max_transaction_size} bytes of "
                "writes and reads."
            )
