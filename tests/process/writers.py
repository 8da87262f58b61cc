"""Writers that remember what they were told, and what may be left of it after a crash.

A writer's keys are its own, and each of its values is different. So what a crash may leave of them
is known exactly: what was acknowledged, and of the one write that was under way all or nothing.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Final

from tests.process.clients import CLOSED, Answer, Client
from tests.process.contents import Contents
from tests.process.servers import PATIENCE, Server, until

_KEYS: Final = 30


class Writer(Thread):
    """Writes until its connection is closed: single keys, or several in an isolated transaction."""

    def __init__(self, name: str, server: Server, transactional: bool, largest: int) -> None:
        super().__init__(name=name)
        self._largest = largest
        self._server = server
        self._random = Random(name)
        self._transactional = transactional
        #: of each key what was acknowledged last: the value (None: deleted), and the revision
        self.told: dict[str, tuple[str | None, int]] = {}
        #: the revisions of all acknowledged writes
        self.revisions: list[int] = []
        #: the write that was under way when the connection was closed, or had failed: who knows?
        self.in_doubt: dict[str, str | None] = {}
        self.statuses: Counter[int] = Counter()
        self.failure: BaseException | None = None
        self._enough = Event()
        self._books = Lock()
        self._closed = False

    def run(self) -> None:
        """Write."""
        try:
            with Client(self._server) as client:
                number = 0
                while not self._enough.is_set():
                    number += 1
                    self._write(client, self._changes(number))
        except CLOSED:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again by `end`, in the test's thread)
            self.failure = error

    def stop(self) -> None:
        """Have it end after its current write, if nothing else ends it."""
        self._enough.set()

    def freeze(self) -> None:
        """Have it note nothing from now on: the write that is under way stays in doubt, if any is, and
        no other is begun.
        """
        with self._books:
            self._closed = True
        self.stop()

    def end(self) -> None:
        """Wait until it has ended. Raises what it has failed with."""
        self.join(PATIENCE)
        if self.failure is not None:
            raise self.failure
        if self.is_alive():
            raise TimeoutError(f"{self.name} still waits for an answer")

    def _changes(self, number: int) -> dict[str, str | None]:
        many = self._random.randint(2, 5) if self._transactional else 1
        present = sorted(key for key, (value, _) in self.told.items() if value is not None)
        if len(present) > many and self._random.random() < 0.1:
            return dict.fromkeys(self._random.sample(present, many))
        value = f"{self.name}: {number} {'.' * self._random.randrange(self._largest)}"
        picked = self._random.sample(range(_KEYS), many)
        return {f"{self.name}-{one}": value for one in picked}

    def _write(self, client: Client, changes: Mapping[str, str | None]) -> None:
        if self._transactional:
            opened = client.ask("POST", "/v1/transactions")
            if not self._noted(opened, 201):
                return
            transaction: str = opened.body["id"]
            for key, value in changes.items():
                if not self._noted(self._change(client, key, value, transaction), 200):
                    return
            self._settle(changes, lambda: client.commit(transaction))
        else:
            [(key, value)] = changes.items()
            self._settle(changes, lambda: self._change(client, key, value, None))

    @staticmethod
    def _change(client: Client, key: str, value: str | None, transaction: str | None) -> Answer:
        return client.delete(key, transaction) if value is None else client.set(key, value, transaction)

    def _noted(self, answer: Answer, good: int) -> bool:
        self.statuses[answer.status] += 1
        return answer.status == good

    def _settle(self, changes: Mapping[str, str | None], write: Callable[[], Answer]) -> None:
        with self._books:
            if self._closed:
                return
            self.in_doubt = dict(changes)
        answer = write()
        with self._books:
            if self._closed:
                return
            if self._noted(answer, 200):
                self.told.update((key, (value, answer.revision)) for key, value in changes.items())
                self.revisions.append(answer.revision)
            elif answer.status == 500:
                self._enough.set()
                return
            self.in_doubt = {}

    def check(self, contents: Contents) -> bool:
        """Assert that `contents` holds of this writer's what it must, and nothing else.

        Return whether the write in doubt was done.
        """
        mine = {
            key: (json.loads(record.value), record.revision)
            for key, record in contents.records.items()
            if key.startswith(f"{self.name}-")
        }
        done = bool(self.in_doubt) and all(
            mine.get(key, (None, 0))[0] == value for key, value in self.in_doubt.items()
        )
        if done:
            revisions = {mine[key][1] for key, value in self.in_doubt.items() if value is not None}
            assert len(revisions) <= 1, f"{self.in_doubt} was done in several revisions"
            mine = {key: found for key, found in mine.items() if key not in self.in_doubt}
        told = {
            key: found
            for key, found in self.told.items()
            if found[0] is not None and not (done and key in self.in_doubt)
        }
        assert mine == told
        return done


class Load:
    """Many writers at once, from entering to leaving the context. The `largest` value has about so
    many bytes.
    """

    def __init__(
        self,
        server: Server,
        name: str = "load",
        writers: int = 8,
        transactional: bool = False,
        largest: int = 200,
    ) -> None:
        self.writers = [
            Writer(f"{name}-{number}", server, transactional, largest) for number in range(writers)
        ]

    def __enter__(self) -> "Load":
        for writer in self.writers:
            writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self.writers:
            writer.stop()
        for writer in self.writers:
            writer.end()

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged so far."""
        return sum(len(writer.revisions) for writer in self.writers)

    @property
    def statuses(self) -> set[int]:
        """The statuses of all answers."""
        return {status for writer in self.writers for status in writer.statuses}

    def wait_for(self, acknowledged: int) -> None:
        """Wait until so many writes were acknowledged."""
        until(lambda: self.acknowledged >= acknowledged, f"{acknowledged} acknowledged writes")

    def freeze(self) -> None:
        """Have no writer note anything from now on."""
        for writer in self.writers:
            writer.freeze()

    def wait_for_close(self) -> None:
        """Wait until every writer's connection is closed."""
        until(lambda: not any(writer.is_alive() for writer in self.writers), "closed connections")


def check(loads: Sequence[Load], contents: Contents) -> None:
    """Assert that a directory holds what `loads`, one after the other, were told, each write with
    its revision; of the writes in doubt all or nothing; and not a key and not a revision besides.
    """
    writers = [writer for load in loads for writer in load.writers]
    done = sum([writer.check(contents) for writer in writers])
    revisions = [revision for writer in writers for revision in writer.revisions]
    assert len(set(revisions)) == len(revisions), "two writes have the same revision"
    assert contents.revision == len(revisions) + done
    names = {writer.name for writer in writers}
    assert {key for key in contents.records if key.rpartition("-")[0] not in names} == set()
