"""Many keys: a start that does not read them, memory that does not grow with them, and all of them
there. `KVACTOR_TEST_KEYS=1000000` is what the promise is about.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from kvactor.tools.bench.preload import key, preload, value
from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.sizes import size

KEYS = size("keys")

#: Bytes of its own that a server with a million keys may use.
MEMORY = 150_000_000


def test_a_server_with_many_keys_is_ready_without_reading_them_and_has_them_all(
    start: Start, data_dir: Path, figure: Callable[[str], None]
) -> None:
    began = time.monotonic()
    preload(data_dir, KEYS)
    figure(f"{KEYS} keys preloaded in {time.monotonic() - began:.1f} s")

    server = start()
    figure(f"{KEYS} keys: ready after {server.ready_after:.2f} s")
    assert server.revision == KEYS
    empty = server.memory()
    random = Random("many keys")
    with Client(server) as client:
        for number in random.sample(range(KEYS), 500):
            expected = {"key": key(number), "value": json.loads(value(number))}
            assert client.get(key(number)).body == expected
        for number in range(KEYS, KEYS + 500):
            assert client.set(key(number), json.loads(value(number))).status == 200
    memory = server.memory()
    figure(f"{KEYS} keys: {empty / 1e6:.0f} MB of its own when ready, {memory / 1e6:.0f} MB in use")
    assert memory < MEMORY
    assert server.stop() == 0

    began = time.monotonic()
    after = contents(data_dir)
    figure(f"{KEYS} keys read and checked in {time.monotonic() - began:.1f} s")
    assert after.revision == after.folded == KEYS + 500
    assert list(after.records) == [key(number) for number in range(KEYS + 500)]
    for number, record in enumerate(after.records.values()):
        assert (record.value, record.revision) == (value(number), number + 1)
