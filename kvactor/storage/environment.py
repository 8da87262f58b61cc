"""LMDB environments, as the journal and the tree open them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import lmdb

from kvactor.core.space import FreePages

#: Nobody else reads the data.
FILE_MODE: Final = 0o600

#: LMDB's two meta pages.
_META_PAGES: Final = 2
#: The list of free pages has 8 bytes for each, and is written anew beside the old one now and then.
_LISTED: Final = 128
#: One page of the list has so many.
_LISTED_BY_PAGE: Final = 500


def open_environment(path: Path, map_size: int, max_dbs: int = 0) -> lmdb.Environment:
    """Open or make the environment in the directory `path`, of at most `map_size` bytes.

    Sync and metasync stay on, writemap off; `lib_version=0` pins LMDB's 0.9 file format. Raises
    `lmdb.Error` if the file is no such environment.
    """
    env = lmdb.open(
        str(path), map_size, mode=FILE_MODE, max_dbs=max_dbs, max_spare_txns=2, lib_version=0
    )
    # A file that was cut short is extended with zeros: a read beyond its end would kill the process,
    # and zeros are an error. (Pages that were freed before they were written may be missing
    # in a sound file too.) Never open the file: closing it would drop LMDB's locks.
    file = path / "data.mdb"
    if file.stat().st_size < used(env):
        os.truncate(file, used(env))
    env.reader_check()
    return env


def used(env: lmdb.Environment) -> int:
    """Return how many bytes of its map an environment has used."""
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def free_space(env: lmdb.Environment) -> int:
    """Return how many bytes the file may grow: as the disk has, or the map if that has less."""
    disk = os.statvfs(env.path())
    return min(disk.f_bavail * disk.f_frsize, env.info()["map_size"] - used(env))


def size(txn: "lmdb.Transaction[bytes]") -> int:
    """Return the bytes of the pages that the main database has, as `txn` sees it."""
    stat = txn.stat()
    return _pages(stat) * stat["psize"]


def _pages(stat: Any) -> int:
    pages: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages


def reusable(env: lmdb.Environment, databases: Iterable[Any] = (), fresh: int = 0) -> FreePages:
    """Return the free pages of the file, about: all that no database has, less `fresh` bytes.

    LMDB does not tell, but for what its databases have. The list of free pages itself is estimated.
    Pages that the last commit has freed, or that a reader still sees, are free only later.
    """
    whole = used(env)  # first: commits go on
    with env.begin() as txn:
        stats = [txn.stat(), *map(txn.stat, databases)]
    page = env.stat()["psize"]
    free = whole // page - sum(map(_pages, stats)) - _META_PAGES
    free = max(0, free - free // _LISTED - 1 - fresh // page)
    nodes = sum(stat["branch_pages"] + stat["leaf_pages"] for stat in stats)
    # A value that has pages of its own has them side by side.
    values = sum(min(stat["overflow_pages"], stat["entries"]) for stat in stats)
    lists = free // _LISTED_BY_PAGE + _META_PAGES
    return FreePages(free * page, nodes + values + lists, nodes * page)


def settle(txn: "lmdb.Transaction[bytes]", key: bytes) -> None:
    """Change nothing, in a commit of its own: the pages that the last commit has freed can be used
    from the next but one on. `key` does not exist.
    """
    txn.put(key, b"")
    txn.delete(key)
