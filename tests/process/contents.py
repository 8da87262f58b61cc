"""What is in a stopped server's data directory, read through the core, and checked on the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kvactor.actor import wall_clock
from kvactor.core.context import Page
from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import Execute, Message, Status
from kvactor.core.operations import Range
from kvactor.core.owner import Owner
from kvactor.core.records import Record, decode
from kvactor.settings import Settings
from kvactor.storage.directory import Storage, open_directory

_PAGE = 1000


class Contents(NamedTuple):
    """Every key with its record; the newest revision; and up to which one the tree is folded."""

    records: dict[str, Record]
    revision: int
    folded: int


class _Reply:
    """Keeps an answer."""

    def __init__(self) -> None:
        self.answer: Any = None

    def set_result(self, result: Any, /) -> None:
        self.answer = result.result

    def set_exception(self, error: BaseException, /) -> None:
        raise error

    def done(self) -> bool:
        return self.answer is not None


class Reader:
    """Asks an owner of a storage that nobody writes to. Raises what it raises."""

    def __init__(self, storage: Storage) -> None:
        self._owner = Owner(storage.journal, storage.tree, Settings(), _unexpected)
        self.revision = self._owner.revision

    def ask(self, message: Message[Any]) -> Any:
        """Return the result of a message."""
        reply = _Reply()
        self._owner.drain(wall_clock(), [(message, reply, UNCOUNTED)])
        return reply.answer

    def scan(self) -> Iterator[tuple[str, Record]]:
        """Yield every key and its record, in order, a page at a time."""
        start = b""
        while True:
            page: Page = self.ask(Execute(Range(start, limit=_PAGE)))
            for key, record in page.items:
                yield key.decode(), decode(record)
            if not page.more:
                return
            start = page.items[-1][0] + b"\0"


def contents(data_dir: Path) -> Contents:
    """Recover a directory as the next start would, without changing it, and return what it holds.

    Asserts that it is in order: the journal reaches back to the tree without a gap, every row and
    every record has a good checksum, and as many keys are counted as there are.
    """
    with open_directory(data_dir, Settings().map_size) as storage:
        reader = Reader(storage)
        records = dict(reader.scan())
        assert reader.ask(Status()).keys == len(records)
        assert all(0 < one.created <= one.revision <= reader.revision for one in records.values())
        kept = [revision.number for revision in storage.journal.replay(0)]
        head = storage.journal.head()
        assert kept == list(range(head - len(kept) + 1, head + 1))
        assert head == reader.revision
        return Contents(records, reader.revision, storage.tree.applied)


def _unexpected(message: Message[Any]) -> None:
    raise AssertionError(f"reading has written: {message}")
