"""P1, from within: only the owner's coroutine touches its objects, and no module uses private names
of another.
"""

import ast
import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from inspect import isfunction
from pathlib import Path
from typing import Any, Final

import pytest

import kvactor
from kvactor.actor import StoreActor
from kvactor.core import feed
from kvactor.core.conflicts import ConflictIndex
from kvactor.core.executor import Executor
from kvactor.core.feed import Feed
from kvactor.core.keyspace import Keyspace
from kvactor.core.messages import Changes, Commit, Open
from kvactor.core.operations import Get
from kvactor.core.replies import HeldReplies
from kvactor.core.store import Store
from kvactor.core.transaction import Transaction
from kvactor.core.transaction_manager import TransactionManager
from kvactor.settings import Settings
from kvactor.storage.directory import open_directory
from tests.core.builders import batch, get, put

#: The classes whose methods only the owner's coroutine may call, once it runs.
OWNED: Final = (
    Executor,
    Keyspace,
    TransactionManager,
    Transaction,
    ConflictIndex,
    Store,
    HeldReplies,
    Feed,
)

#: What other threads call to reach the loop; and what the loop calls then.
ENTRANCE: Final = "StoreActor._post"
INSIDE: Final = "StoreActor._put"

#: Seconds after which an event that is waited for has failed to happen.
PATIENCE: Final = 10


async def test_p1_only_the_owners_coroutine_touches_its_objects_while_the_disk_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: dict[str, set[tuple[int, str]]] = defaultdict(set)

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            callers[name].add((threading.get_ident(), running()))
            return function(*arguments, **named)

        return wrapper

    # So that flushes, folds and reads of history follow one another, each in a thread of its own, and
    # ticks among them. The one key fills a memtable, and never makes writes stall.
    monkeypatch.setattr("kvactor.actor.TICK", 0.001)
    monkeypatch.setattr(feed, "TAIL", 0)
    for kind in OWNED:
        for name, function in list(vars(kind).items()):
            if isfunction(function):
                monkeypatch.setattr(kind, name, noted(f"{kind.__name__}.{name}", function))
    storage = open_directory(tmp_path, 1 << 30)
    actor = StoreActor(storage, Settings(memtable_size=150))
    callers.clear()
    for name in (ENTRANCE, INSIDE):
        method = name.rpartition(".")[2]
        monkeypatch.setattr(StoreActor, method, noted(name, getattr(StoreActor, method)))
    # The owner keeps what it was given when it was made.
    monkeypatch.setattr(actor._owner, "_post", actor._post)
    await actor.start()
    reader = actor.ask(Changes(0, 1, wait=True))
    async with asyncio.timeout(PATIENCE):
        while not {"TransactionManager.sweep", "Store.drop_frozen", "Feed.history"} <= callers.keys():
            await actor.ask(Open("t"))
            await actor.ask(get(b"key", "t"))
            await actor.ask(put(b"key", b"", "t"))
            await actor.ask(Commit("t"))
            await actor.ask(get(b"key"))
            await actor.ask(batch(Get(b"key")))
            await actor.ask(Changes(0, 1))
        assert (await reader).result[0].number == 1
        await actor.stop()
    storage.close()
    outside = callers.pop(ENTRANCE)
    assert {thread for thread, _ in outside} - {threading.get_ident()}, (
        "no other thread posted anything"
    )
    assert {thread for thread, _ in callers.pop(INSIDE)} == {threading.get_ident()}
    assert {kind.__name__ for kind in OWNED} == {name.split(".")[0] for name in callers}
    assert {"Executor.batch", "Store.apply", "Feed.publish", "Feed.history"} <= callers.keys()
    owner = {(threading.get_ident(), actor.done.get_name())}
    assert {name: tasks for name, tasks in callers.items() if tasks != owner} == {}


def running() -> str:
    """Return the name of the task that runs; empty for a callback, and in other threads."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return ""
    return task.get_name() if task is not None else ""


#: Names with an underscore that are there for everybody: one of a module, and one of each named tuple.
PUBLIC: Final = "os._exit"
OF_NAMED_TUPLES: Final = "_replace"


def reached_into(source: str) -> list[str]:
    """Return the private names that a module uses of anything but `self`."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) not in {"self", "cls", "super()"}
        and ast.unparse(node) != PUBLIC
        and node.attr != OF_NAMED_TUPLES
    ]


SOURCES: Final = sorted(Path(kvactor.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_p1_a_module_uses_no_private_name_of_another(path: Path) -> None:
    assert reached_into(path.read_text()) == []


def test_a_private_name_of_another_object_is_found() -> None:
    assert reached_into("self._mine()\nself._actor._owner\nactor._owner.drain()\nos._exit(1)") == [
        "self._actor._owner",
        "actor._owner",
    ]
