"""What the journal and the tree have in common: an LMDB environment, opened with care."""

import os
from pathlib import Path

import lmdb

from kvactor.errors import DataDamaged


def open_environment(path: Path, map_size: int, max_dbs: int = 0) -> lmdb.Environment:
    """Open or make the environment in the directory `path`, of at most `map_size` bytes.

    Sync and metasync stay on, writemap off; `lib_version=0` pins LMDB's 0.9 file format. Raises
    `DataDamaged` if the file is no such environment, or shorter than it says: reading pages that
    are not there would end the process.
    """
    try:
        env = lmdb.open(str(path), map_size, max_dbs=max_dbs, max_spare_txns=2, lib_version=0)
    except lmdb.Error as error:
        raise DataDamaged(f"{path} cannot be opened: {error}. Restore it from a backup.") from error
    size, expected = (path / "data.mdb").stat().st_size, used(env)
    if size < expected:
        env.close()
        raise DataDamaged(f"{path} has been cut: {size} bytes of {expected}. Restore it from a backup.")
    env.reader_check()
    return env


def used(env: lmdb.Environment) -> int:
    """Return how many bytes of its map an environment has used."""
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def free_space(env: lmdb.Environment) -> int:
    """Return how many bytes can still be written: of the disk, or of the map if that has less."""
    disk = os.statvfs(env.path())
    return min(disk.f_bavail * disk.f_frsize, env.info()["map_size"] - used(env))
