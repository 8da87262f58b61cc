"""`python -m tests.process.damaged KEYS DIRECTORY...` reads the first KEYS preloaded keys of damaged
directories: a process of its own, in case that it ends in a crash. The last line says what was read.
"""

import contextlib
import sys
from pathlib import Path

from kvactor.core.messages import Execute
from kvactor.core.operations import Get
from kvactor.core.records import value_of
from kvactor.errors import DataDirectoryError, RecordDamaged
from kvactor.settings import Settings
from kvactor.storage.directory import open_directory
from kvactor.tools.bench.preload import key, value
from tests.process.contents import Reader


def read(directory: Path, keys: int) -> None:
    """Read every key; an error is good, a wrong value is not."""
    with open_directory(directory, Settings().map_size) as storage:
        reader = Reader(storage)
        for number in range(keys):
            with contextlib.suppress(RecordDamaged):
                record: bytes | None = reader.ask(Execute(Get(key(number).encode())))
                if record is not None and value_of(record) != value(number):
                    raise ValueError(f"{key(number)} has a wrong value")


if __name__ == "__main__":
    for directory in map(Path, sys.argv[2:]):
        sys.stdout.write(f"{directory.name}\n")
        sys.stdout.flush()
        with contextlib.suppress(DataDirectoryError):
            read(directory, int(sys.argv[1]))
    sys.stdout.write("all read\n")
