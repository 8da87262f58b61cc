"""What only the storage on a disk can do, and suffer."""

import logging
import os
import shutil
import stat
from pathlib import Path
from threading import Event
from typing import Any

import lmdb
import pytest

from kvactor.core.records import NEVER, TOMBSTONE, encode
from kvactor.core.work import BYTES, UNCHARGED, Work
from kvactor.errors import (
    DataDamaged,
    DataDirectoryError,
    DirectoryInUse,
    FormatUnsupported,
    RecordDamaged,
    RequestTooExpensive,
)
from kvactor.storage.directory import FORMAT, open_directory
from kvactor.storage.environment import open_environment
from kvactor.storage.journal import LmdbJournal
from kvactor.storage.tree import LmdbTree
from tests.storage.test_contract import MAP_SIZE, append, fold, record, revision

#: Seconds after which an event that is waited for has failed to happen.
PATIENCE = 30


def test_a_journal_and_a_tree_that_are_opened_again_hold_the_same_contents(tmp_path: Path) -> None:
    with open_directory(tmp_path / "new" / "data", MAP_SIZE) as storage:
        append(storage.journal, 1, 2)
        fold(storage.tree, {b"a": record(b"a", b"v", 9)}, 1)
    with open_directory(tmp_path / "new" / "data", MAP_SIZE) as storage:
        assert list(storage.journal.replay(storage.tree.applied)) == [revision(2)]
        assert storage.tree.get(b"a", UNCHARGED) == record(b"a", b"v", 9)
        assert list(storage.tree.expired((0, b""), NEVER)) == [(9, b"a")]


def test_a_map_that_does_not_fit_into_memory_is_refused_with_the_setting_to_lower(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataDirectoryError, match=r"Lower --map-size") as refused:
        open_directory(tmp_path, 1 << 62)
    assert not isinstance(refused.value, DataDamaged)
    open_directory(tmp_path, MAP_SIZE).close()


def test_a_disk_that_is_full_at_the_start_is_refused_without_calling_the_data_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(lmdb, "open", full)
    with pytest.raises(DataDirectoryError, match=r"No space left on device\. Make room") as refused:
        open_directory(tmp_path, MAP_SIZE)
    assert not isinstance(refused.value, DataDamaged)


def test_p3_every_folder_that_names_a_new_one_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all file systems make a new file's name durable with its bytes, as the tests' one does."""
    fsync, synced = os.fsync, set()

    def noted(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    data = tmp_path / "new" / "er" / "data"
    open_directory(data, MAP_SIZE).close()
    folders = [tmp_path, data.parent.parent, data.parent, data, data / "journal", data / "tree"]
    unsynced = [one for one in (*folders, data / "FORMAT") if one.stat().st_ino not in synced]
    assert unsynced == []


def test_p3_a_commit_is_synced_whole(tmp_path: Path) -> None:
    """A power cut shows it, too, where there may be one."""
    env = open_environment(tmp_path, MAP_SIZE)
    flags = env.flags()
    env.close()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert not flags["map_async"]


def test_a_directory_has_one_user_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(DirectoryInUse, match=f"in use by process {os.getpid()}.*--data-dir")
    with open_directory(tmp_path, MAP_SIZE), refused:
        open_directory(tmp_path, MAP_SIZE)
    open_directory(tmp_path, MAP_SIZE).close()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"kvactor {FORMAT + 1}\n", "newer kvactor"),
        ("", "no data directory, or it is damaged"),
        ("kvactor one", "no data directory, or it is damaged"),
        ("something else 1", "no data directory, or it is damaged"),
        ("kvactor 0", "no data directory, or it is damaged"),
    ],
)
def test_an_unknown_format_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "FORMAT").write_text(text)
    for _ in range(2):
        with pytest.raises(FormatUnsupported, match=sentence):
            open_directory(tmp_path, MAP_SIZE)
    assert not (tmp_path / "journal").exists()


def test_a_directory_of_format_1_is_opened_and_is_of_the_new_format_then(tmp_path: Path) -> None:
    open_directory(tmp_path, MAP_SIZE).close()
    (tmp_path / "FORMAT").write_text("kvactor 1\n")
    open_directory(tmp_path, MAP_SIZE).close()
    assert (tmp_path / "FORMAT").read_text() == f"kvactor {FORMAT}\n"


@pytest.mark.parametrize("name", ["LOCK", "FORMAT", "FORMAT.new"])
def test_a_folder_in_the_place_of_a_file_is_refused_with_its_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataDirectoryError, match=str(tmp_path / name)):
        open_directory(tmp_path, MAP_SIZE)


@pytest.mark.parametrize("part", ["journal", "tree"])
def test_a_directory_without_its_format_is_refused(tmp_path: Path, part: str) -> None:
    (tmp_path / part).mkdir()
    with pytest.raises(FormatUnsupported, match="no FORMAT file"):
        open_directory(tmp_path, MAP_SIZE)


@pytest.mark.parametrize("path", ["file", "file/data", "file/far/below"])
def test_a_file_in_the_place_of_the_directory_is_refused_with_its_path(
    tmp_path: Path, path: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataDirectoryError, match=f": {file} is a file and not a directory.*--data-dir"):
        open_directory(tmp_path / path, MAP_SIZE)


@pytest.mark.parametrize("part", ["journal", "tree"])
def test_a_file_in_the_place_of_a_folder_is_refused_with_its_path(tmp_path: Path, part: str) -> None:
    open_directory(tmp_path / "data", MAP_SIZE).close()
    shutil.rmtree(tmp_path / "data" / part)
    (tmp_path / "data" / part).touch()
    with pytest.raises(DataDirectoryError, match=f"{part} is a file and not a directory"):
        open_directory(tmp_path / "data", MAP_SIZE)


def test_files_that_are_not_lmdbs_are_refused(tmp_path: Path) -> None:
    open_directory(tmp_path, MAP_SIZE).close()
    (tmp_path / "tree" / "data.mdb").write_bytes(b"x" * 8192)
    for _ in range(2):
        with pytest.raises(DataDamaged, match="cannot be read"):
            open_directory(tmp_path, MAP_SIZE)


def test_rows_of_another_writer_are_noticed(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path, MAP_SIZE)
    append(journal, 1, 2)
    assert isinstance(append(journal, 2, 3), DataDamaged)
    assert journal.head() == 2
    journal.close()


def test_rows_that_are_missing_or_foreign_are_noticed(tmp_path: Path) -> None:
    def change(*rows: tuple[bytes, bytes | None]) -> LmdbJournal:
        with lmdb.open(str(tmp_path), MAP_SIZE, lib_version=0) as env, env.begin(write=True) as txn:
            for key, row in rows:
                _ = txn.delete(key) if row is None else txn.put(key, row)
        return LmdbJournal(tmp_path, MAP_SIZE)

    journal = LmdbJournal(tmp_path, MAP_SIZE)
    append(journal, 1, 2, 3)
    journal.close()
    journal = change((bytes(7) + b"\2", None))
    with pytest.raises(DataDamaged, match="Revision 2 is missing"):
        list(journal.replay(0))
    assert list(journal.replay(2)) == [revision(3)]
    journal.close()
    journal = change((b"short", b"row"))
    with pytest.raises(DataDamaged, match=r"b'short'.* no revision's number"):
        journal.head()
    journal.close()


def test_free_space_is_that_of_the_map_if_that_is_less(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path, 16 << 20)
    assert 0 < journal.free_space() < 16 << 20
    journal.close()


def test_a_damaged_record_is_an_error_and_can_be_replaced(tmp_path: Path) -> None:
    damaged = bytearray(record(b"a", b"v", 5))
    damaged[-1] ^= 1
    with lmdb.open(str(tmp_path), MAP_SIZE, max_dbs=3, lib_version=0) as env:
        records = env.open_db(b"records")
        with env.begin(records, write=True) as txn:
            txn.put(b"a", bytes(damaged))
            txn.put(b"short", b"!")
    tree = LmdbTree(tmp_path, MAP_SIZE)
    fold(tree, {b"b": record(b"b")}, 1)
    with pytest.raises(RecordDamaged, match="'a'"):
        tree.get(b"a", UNCHARGED)
    with pytest.raises(RecordDamaged, match="'short'"):
        list(tree.range(b"short", None, False, True, UNCHARGED))
    assert tree.get(b"b", UNCHARGED) == record(b"b")
    fold(tree, {b"a": record(b"a"), b"short": TOMBSTONE}, 2)
    assert tree.get(b"a", UNCHARGED) == record(b"a")
    assert list(tree.expired((0, b""), NEVER - 1)) == []
    tree.close()


def test_a_journal_row_of_a_megabyte_is_replayed(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path, MAP_SIZE)
    large = revision(1).__class__(1, 0, ((b"k", encode(b"k", bytes(1 << 20), "")),))
    journal.append([large], lambda error: None)
    journal.close()
    journal = LmdbJournal(tmp_path, MAP_SIZE)
    assert list(journal.replay(0)) == [large]
    journal.close()


def test_p10_a_flush_that_has_failed_is_told_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = lmdb.DiskError("Input/output error")
    tries: list[int] = []
    told: list[BaseException | None] = []

    def fail(_: LmdbJournal, __: object, rows: list[tuple[bytes, bytes]]) -> None:
        tries.append(len(rows))
        raise failure

    journal = LmdbJournal(tmp_path, MAP_SIZE)
    monkeypatch.setattr(LmdbJournal, "_write", fail)
    journal.append([revision(1), revision(2)], told.append)
    journal.close()
    assert (tries, told) == ([2], [failure])


def test_a_reading_that_has_not_begun_when_the_journal_closes_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = LmdbJournal(tmp_path, MAP_SIZE)
    append(journal, 1)
    go, found = Event(), list[int]()
    shutdown = journal._reader.shutdown

    def held_up(**options: Any) -> None:
        shutdown(wait=False, **options)
        go.set()
        shutdown(**options)

    monkeypatch.setattr(journal._reader, "shutdown", held_up)
    journal._reader.submit(go.wait, PATIENCE)
    journal.read(0, 1, lambda revisions, _: found.append(len(revisions)))
    journal.close()
    assert found == []


# -- rights --


def modes(path: Path) -> dict[str, int]:
    """Return the rights of a directory and of all that is in it."""
    found = [path, *path.rglob("*")]
    return {str(one.relative_to(path)): stat.S_IMODE(one.lstat().st_mode) for one in found}


NAMES = ("LOCK", "FORMAT", "journal/data.mdb", "journal/lock.mdb", "tree/data.mdb", "tree/lock.mdb")
PRIVATE = dict.fromkeys((".", "journal", "tree"), 0o700) | dict.fromkeys(NAMES, 0o600)


def test_nobody_else_may_read_a_new_data_directory_or_anything_in_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_directory(tmp_path / "data", MAP_SIZE).close()
    finally:
        os.umask(before)
    assert modes(tmp_path / "data") == PRIVATE


def test_rights_of_others_on_what_is_in_an_older_directory_are_taken_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    open_directory(data, MAP_SIZE).close()
    for one in (data, *data.rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)
    (data / "notes").touch(0o644)
    caplog.set_level(logging.INFO)
    open_directory(data, MAP_SIZE).close()
    # The directory may be an administrator's, and the file is not ours.
    assert modes(data) == PRIVATE | {".": 0o755, "notes": 0o644}
    assert "others had rights on" in caplog.text
    data.chmod(0o777)
    open_directory(data, MAP_SIZE).close()
    assert "give it mode 0700" in caplog.text


def test_a_link_in_the_place_of_the_lock_is_refused_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    data = tmp_path / "data"
    open_directory(data, MAP_SIZE).close()
    (data / "LOCK").unlink()
    (data / "LOCK").symlink_to(other)
    with pytest.raises(DataDirectoryError, match="LOCK is a symbolic link"):
        open_directory(data, MAP_SIZE)
    assert other.read_text() == "untouched"


def test_a_link_in_the_place_of_the_formats_draft_is_removed_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    data = tmp_path / "data"
    data.mkdir()
    (data / "FORMAT.new").symlink_to(other)
    open_directory(data, MAP_SIZE).close()
    assert other.read_text() == "untouched"
    assert not (data / "FORMAT").is_symlink()


def test_p8_a_value_is_charged_before_it_is_read(tmp_path: Path) -> None:
    tree = LmdbTree(tmp_path, MAP_SIZE)
    large = record(b"a", bytes(100 * BYTES))
    fold(tree, {b"a": large}, 1)
    assert tree.get(b"a", Work(110)) == large
    with pytest.raises(RequestTooExpensive):
        tree.get(b"a", Work(90))
    tree.close()
