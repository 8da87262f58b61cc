"""LMDB environments, as the journal and the tree open them."""

import os
from pathlib import Path

import lmdb


def open_environment(path: Path, map_size: int, max_dbs: int = 0) -> lmdb.Environment:
    """Open or make the environment in the directory `path`, of at most `map_size` bytes.

    Sync and metasync stay on, writemap off; `lib_version=0` pins LMDB's 0.9 file format. Raises
    `lmdb.Error` if the file is no such environment.
    """
    env = lmdb.open(str(path), map_size, max_dbs=max_dbs, max_spare_txns=2, lib_version=0)
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
    """Return how many bytes can still be written: of the disk, or of the map if that has less."""
    disk = os.statvfs(env.path())
    return min(disk.f_bavail * disk.f_frsize, env.info()["map_size"] - used(env))
