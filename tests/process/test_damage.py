"""Damaged files: an error where the damage is, never a wrong value."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from kvactor.core.records import HEADER_SIZE
from kvactor.tools.bench.preload import key, preload, value
from kvactor.tools.processes import ServerFailed
from tests.process.clients import CLOSED, Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.servers import PATIENCE, Server, environment, refusal
from tests.sizes import size

#: Where in a record a bit is flipped: what is there, and its offset.
_CONTENT_TYPE = HEADER_SIZE
_VALUE = HEADER_SIZE + len("application/json")
PLACES = {
    "checksum": 0,
    "revision": 11,
    "create revision": 19,
    "expiry": 20,
    "length of content type": HEADER_SIZE - 1,
    "content type": _CONTENT_TYPE,
    "value": _VALUE + 1,
    "end of value": -1,
}


def text_of(name: str) -> str:
    """Return a value that is found nowhere else in a file."""
    return f"what is stored under the key {name}, and nowhere else"


def fill(server: Server, names: Iterable[str]) -> None:
    with Client(server) as client:
        for name in names:
            assert client.set(name, text_of(name)).status == 200


def flip(file: Path, name: str, place: int = _VALUE + 1) -> None:
    """Flip a bit in every copy of a key's record in a file."""
    data = bytearray(file.read_bytes())
    copies = list(re.finditer(re.escape(json.dumps(text_of(name)).encode()), data))
    assert copies, f"the record of {name} is not in {file}"
    for copy in copies:
        data[copy.end() - 1 if place < 0 else copy.start() - _VALUE + place] ^= 1
    file.write_bytes(data)


def test_a_flipped_bit_in_a_record_is_an_error_for_its_key_and_can_be_repaired_by_writing(
    start: Start, data_dir: Path
) -> None:
    good = [f"{name}, its neighbour" for name in PLACES]
    server = start()
    fill(server, [*PLACES, *good])
    assert server.stop() == 0
    for name, place in PLACES.items():
        flip(data_dir / "tree" / "data.mdb", name, place)

    server = start()
    overwritten, deleted = list(PLACES)[::2], list(PLACES)[1::2]
    with Client(server) as client:
        for name in PLACES:
            answer = client.get(name)
            assert (answer.status, list(answer.body)) == (500, ["error"])
            assert name in answer.body["error"]
            server.wait_for_log(f"record of key '{name}' fails its checksum")
        for name in good:
            assert client.get(name).body == {"key": name, "value": text_of(name)}
        for name in overwritten:
            assert client.set(name, "anew").status == 200
        for name in deleted:
            assert client.delete(name).status == 200
    assert server.stop() == 0

    records = contents(data_dir).records
    assert sorted(records) == sorted(good + overwritten)
    assert {records[name].value for name in overwritten} == {b'"anew"'}


def test_a_flipped_bit_in_a_revision_to_be_replayed_is_a_refusal_to_start(
    start: Start, tmp_path: Path, data_dir: Path
) -> None:
    server = start()
    fill(server, ["first", "second", "third"])
    server.kill()
    flip(data_dir / "journal" / "data.mdb", "second")
    assert "Revision 2 in the journal fails its checksum" in refusal(tmp_path, data_dir)


def test_a_journal_that_ends_before_the_tree_is_a_refusal_to_start(
    tmp_path: Path, data_dir: Path
) -> None:
    preload(data_dir, 5)
    early = (data_dir / "journal" / "data.mdb").read_bytes()
    preload(data_dir, 5)
    (data_dir / "journal" / "data.mdb").write_bytes(early)
    said = refusal(tmp_path, data_dir)
    assert "The tree is at revision 10, but the journal ends at 5" in said


def test_files_that_are_no_longer_lmdbs_are_a_refusal_to_start(tmp_path: Path, data_dir: Path) -> None:
    preload(data_dir, 5)
    (data_dir / "tree" / "data.mdb").write_bytes(b"not LMDB's " * 1000)
    assert "cannot be read" in refusal(tmp_path, data_dir)


def started(start: Start) -> Server | ServerFailed:
    try:
        return start()
    except ServerFailed as refusal:
        return refusal


@pytest.mark.parametrize("part", ["journal", "tree"])
def test_a_file_that_is_cut_short_is_an_error_and_neither_a_crash_nor_a_wrong_value(
    start: Start, data_dir: Path, part: str
) -> None:
    names = [f"key{number}" for number in range(300)]
    server = start("--memtable-size", "50000")
    fill(server, names)
    server.kill()
    file = data_dir / part / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)

    again = started(start)
    if isinstance(again, ServerFailed):
        assert again.status == 1
        assert re.fullmatch(r"kvactor: .+\n", again.log)
        return
    with Client(again) as client, contextlib.suppress(*CLOSED):
        for name in names:
            answer = client.get(name)
            assert answer.status == 500 or answer.body == {"key": name, "value": text_of(name)}
        assert again.stop() == 0
    assert again.wait() in {0, 1}
    assert "damaged" in again.log


#: Bytes of a page of LMDB's.
PAGE = 4096
#: Damaged directories that are read by one process.
AT_ONCE = 200


def test_no_damage_anywhere_in_the_files_is_a_crash_or_a_wrong_value(
    start: Start, tmp_path: Path, data_dir: Path
) -> None:
    """A key may seem to be missing, though: not everything in LMDB's pages has a checksum."""
    folded, replayed = 300, 100
    preload(data_dir, folded)
    server = start()
    with Client(server) as client:
        for number in range(folded, folded + replayed):
            assert client.set(key(number), json.loads(value(number))).status == 200
    server.kill()

    random = Random("damage")
    names = (f"damaged {number}" for number in range(size("damages")))
    while some := list(islice(names, AT_ONCE)):
        directories = [damaged(random, data_dir, tmp_path / name) for name in some]
        read = subprocess.run(
            [sys.executable, "-m", "tests.process.damaged", str(folded + replayed), *directories],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert read.returncode == 0, f"{read.stdout.splitlines()[-1]}\n{read.stderr}"
        assert read.stdout.splitlines()[-1] == "all read"
        for directory in directories:
            shutil.rmtree(directory)


def damaged(random: Random, data_dir: Path, place: Path) -> Path:
    """Damage a copy of a data directory, and return it: `place`, with what was done in its name."""
    part, damage = random.choice(["journal", "tree"]), random.choice(["bit", "page", "end"])
    data = bytearray((data_dir / part / "data.mdb").read_bytes())
    at = random.randrange(len(data))
    if damage == "bit":
        data[at] ^= 1 << random.randrange(8)
    elif damage == "page":
        at -= at % PAGE
        data[at : at + PAGE] = bytes(PAGE)
    else:
        del data[at:]
    directory = place.with_name(f"{place.name}: {damage} of the {part} at {at}")
    shutil.copytree(data_dir, directory)
    (directory / part / "data.mdb").write_bytes(data)
    return directory
