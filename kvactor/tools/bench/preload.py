"""Fills a data directory without a server, faster than requests could, for runs with many keys.

The rule: everything goes through the owner, in drains of `Set` messages. So the directory is what a
server would have left: the journal trimmed to the history, all of it folded into the tree.
"""

from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from kvactor.actor import wall_clock
from kvactor.core.memory import UNCOUNTED
from kvactor.core.messages import Execute, Message, Stop
from kvactor.core.operations import Set
from kvactor.core.owner import Owner
from kvactor.settings import Settings
from kvactor.storage.directory import open_directory

#: Writes that share a flush.
_DRAIN: Final = 1000

_DEFAULTS: Final = Settings()


def key(number: int) -> str:
    """Return the name of a preloaded key."""
    return f"key{number:09d}"


def value(number: int) -> bytes:
    """Return the value of a preloaded key: 100 bytes of JSON text, a string."""
    return b'"%098d"' % number


def preload(data_dir: Path, keys: int, settings: Settings = _DEFAULTS) -> None:
    """Fill the data directory `data_dir` with `keys` keys, each of them one revision.

    Raises `DataDirectoryError` if it cannot be used.
    """
    news: SimpleQueue[Message[Any]] = SimpleQueue()
    with open_directory(data_dir, settings.map_size) as storage:
        owner = Owner(storage.journal, storage.tree, settings, news.put)
        for first in range(0, keys, _DRAIN):
            batch = range(first, min(first + _DRAIN, keys))
            sets = [Set(key(i).encode(), value(i), "application/json") for i in batch]
            durable = owner.revision + len(sets)
            owner.drain(wall_clock(), [(Execute(one), None, UNCOUNTED) for one in sets])
            while owner.revision < durable or owner.writer.folds_lag:
                owner.drain(wall_clock(), [(news.get(), None, UNCOUNTED)])
        owner.drain(wall_clock(), [(Stop(), None, UNCOUNTED)])
        while not owner.finished:
            owner.drain(wall_clock(), [(news.get(), None, UNCOUNTED)])
