"""The data directory: its lock, its format and its contents.

    LOCK      held with flock(2) as long as a process uses the directory; names the process
    FORMAT    the layout's version
    journal/  an LMDB environment
    tree/     an LMDB environment

The rule: nothing in the directory is touched before the lock is held and the format is known. Nobody
but the user who runs the server may read what is in it, or hold the lock.
"""

import errno
import fcntl
import logging
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final

import lmdb
import msgspec

from kvactor.core.protocols import Journal, Tree
from kvactor.errors import DataDamaged, DataDirectoryError, DirectoryInUse, FormatUnsupported
from kvactor.storage.environment import FILE_MODE
from kvactor.storage.journal import LmdbJournal
from kvactor.storage.memory import MemoryJournal, MemoryTree
from kvactor.storage.tree import LmdbTree

log = logging.getLogger(__name__)

#: The layout's version. Records of format 1 have one checksum, not two; they are read, too.
FORMAT = 2
OLDEST_FORMAT = 1

_FOLDER_MODE: Final = 0o700
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
#: The names of what is in the directory.
_OURS: Final = ("LOCK", "FORMAT", "journal", "tree", "data.mdb", "lock.mdb")

#: What to do about errors of LMDB's that say nothing about the data.
_ADVICE: Final[dict[type[lmdb.Error], str]] = {
    lmdb.MemoryError: "Lower --map-size, or raise the limit of address space (ulimit -v).",
    lmdb.DiskError: "Make room on the disk.",
}


class Storage(msgspec.Struct, frozen=True):
    """A journal and its tree, and the descriptor of the lock on their directory (None in memory)."""

    journal: Journal
    tree: Tree
    lock: int | None = None

    def close(self) -> None:
        """Close the journal and the tree, and drop the lock. It waits for a flush or a fold."""
        self.journal.close()
        self.tree.close()
        if self.lock is not None:
            os.close(self.lock)

    def __enter__(self) -> "Storage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_memory() -> Storage:
    """Return a storage that lasts as long as the process."""
    return Storage(MemoryJournal(), MemoryTree())


def open_directory(path: Path, map_size: int) -> Storage:
    """Open the data directory `path`, or make it.

    Raises `DataDirectoryError` and what derives from it.
    """
    try:
        _make(path)
        lock = _lock(path)
        try:
            return _open(path, map_size, lock)
        except BaseException:
            os.close(lock)
            raise
    except (FileExistsError, NotADirectoryError) as error:
        at = Path(error.filename or path)
        file = next((one for one in (at, *at.parents) if one.is_file()), at)
        raise DataDirectoryError(
            f"Cannot use the data directory {path}: {file} is a file and not a directory. "
            "Choose another directory with --data-dir."
        ) from error
    except OSError as error:
        raise DataDirectoryError(
            f"Cannot use the data directory {path}: {error.filename or path}: {error.strerror}. "
            "Choose one that this user may write, with --data-dir."
        ) from error
    except tuple(_ADVICE) as error:
        raise DataDirectoryError(
            f"Cannot use the data directory {path}: {error}. {_ADVICE[type(error)]}"
        ) from error
    except lmdb.Error as error:
        raise DataDamaged(
            f"The data in {path} cannot be read: {error}. Restore it from a backup."
        ) from error


def _make(path: Path) -> None:
    path = path.absolute()
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(_FOLDER_MODE, exist_ok=True)
    # `_open` does so for the directory itself, at every start, because a start may be cut short.
    for folder in new:
        _sync(folder.parent)


def _open(path: Path, map_size: int, lock: int) -> Storage:
    _check_format(path)
    for part in ("journal", "tree"):
        (path / part).mkdir(_FOLDER_MODE, exist_ok=True)
    _tighten(path)
    storage = Storage(LmdbJournal(path / "journal", map_size), LmdbTree(path / "tree", map_size), lock)
    # A new file lasts only once the folder that names it is on disk too.
    for folder in (path / "journal", path / "tree", path, path.absolute().parent):
        _sync(folder)
    return storage


def _tighten(path: Path) -> None:
    """Take from others what rights they have on what is in the directory, as older versions made it.

    The directory itself may have been made by an administrator, for a group that looks into it: if
    others may write in it, the log warns.
    """
    loose: list[Path] = []
    for part in (*path.glob("journal/*.mdb"), *path.glob("tree/*.mdb"), *path.iterdir()):
        mode = part.lstat().st_mode
        if part.name in _OURS and not stat.S_ISLNK(mode) and mode & _OTHERS:
            try:
                part.chmod(_FOLDER_MODE if stat.S_ISDIR(mode) else FILE_MODE)
            except PermissionError:
                log.warning("others have rights on %s, and they cannot be taken away", part)
            else:
                loose.append(part)
    if loose:
        log.info("others had rights on %s and have none any more", ", ".join(map(str, loose)))
    if path.stat().st_mode & _OTHERS_WRITE:
        log.warning("others may write in the data directory %s: give it mode 0700", path)


def _open_file(file: Path, flags: int) -> int:
    """Open a file of the directory's own. Raises `DataDirectoryError` if it is a link."""
    try:
        return os.open(file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DataDirectoryError(
            f"Cannot use the data directory {file.parent}: {file} is a symbolic link, and none is "
            "followed here. Remove it, or choose another directory with --data-dir."
        ) from error


def _lock(path: Path) -> int:
    lock = _open_file(path / "LOCK", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 100).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise DirectoryInUse(
            f"The data directory {path} is in use by {holder}. "
            "Stop that server first, or choose another directory with --data-dir."
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()}\n".encode(), 0)
    return lock


def _check_format(path: Path) -> None:
    file = path / "FORMAT"
    if not file.exists():
        if (path / "journal").exists() or (path / "tree").exists():
            raise FormatUnsupported(
                f"{path} has a journal or a tree but no FORMAT file: it is no data directory "
                "of kvactor's, or it is damaged."
            )
        _write_format(path)
    match file.read_text(errors="replace").split():
        case ["kvactor", version] if version.isdecimal() and int(version) == FORMAT:
            return
        case ["kvactor", version] if version.isdecimal() and OLDEST_FORMAT <= int(version) < FORMAT:
            # Before a record of the new format is written: an older version could not read it.
            _write_format(path)
            return
        case ["kvactor", version] if version.isdecimal() and int(version) > FORMAT:
            raise FormatUnsupported(
                f"The data directory {path} has format {version}; this version of kvactor "
                f"knows format {FORMAT}. "
                "Start it with a newer kvactor."
            )
    raise FormatUnsupported(
        f"{file} is not a FORMAT file of kvactor's: this is no data directory, or it is damaged."
    )


def _write_format(path: Path) -> None:
    draft = path / "FORMAT.new"
    draft.unlink(missing_ok=True)  # of a start that was cut short
    with open(_open_file(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as out:
        out.write(f"kvactor {FORMAT}\n")
        out.flush()
        os.fsync(out.fileno())
    draft.rename(path / "FORMAT")
    _sync(path)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
