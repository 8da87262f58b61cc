"""P1, from within: only the owner's coroutine touches what it has, and nobody reaches into what is
another's.
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
from kvactor.core.access import Access
from kvactor.core.sessions import Sessions
from kvactor.core.units import Units

import kvactor
from kvactor.actor import StoreActor
from kvactor.core.feed import Feed
from kvactor.core.messages import Batch, Changes, Commit, Open
from kvactor.core.operations import Get, Operations, Set
from kvactor.core.replies import HeldReplies
from kvactor.core.store import Store
from kvactor.settings import Settings
from kvactor.storage.directory import open_directory

#: What only the owner's coroutine may call, once it runs.
OWNED: Final = (Access, Operations, Units, Sessions, Store, HeldReplies, Feed)

#: What other threads call, to have the loop be told; and what the loop calls then.
DOOR: Final = "StoreActor._post"
INSIDE: Final = "StoreActor._put"

#: Seconds after which what is waited for has failed to happen.
PATIENCE: Final = 10


async def test_p1_whatever_the_disk_does_only_the_owners_coroutine_touches_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: dict[str, set[tuple[int, str]]] = defaultdict(set)

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            callers[name].add((threading.get_ident(), running()))
            return function(*arguments, **named)

        return wrapper

    # So that flushes and folds follow one another, each in a thread of its own, and ticks among them.
    monkeypatch.setattr("kvactor.actor.TICK", 0.001)
    storage = open_directory(tmp_path, 1 << 30)
    actor = StoreActor(storage, Settings(memtable_size=1))
    for kind in OWNED:
        for name, function in list(vars(kind).items()):
            if isfunction(function):
                monkeypatch.setattr(kind, name, noted(f"{kind.__name__}.{name}", function))
    for name in (DOOR, INSIDE):
        method = name.rpartition(".")[2]
        monkeypatch.setattr(StoreActor, method, noted(name, getattr(StoreActor, method)))
    # The owner keeps what it was given when it was made.
    monkeypatch.setattr(actor._owner, "_post", actor._post)
    await actor.start()
    reader = actor.ask(Changes(0, 1, wait=True))
    async with asyncio.timeout(PATIENCE):
        while "Sessions.sweep" not in callers or "Store.drop_frozen" not in callers:
            await actor.ask(Open("t"))
            await actor.ask(Set(b"key", b"", "text/plain", "t"))
            await actor.ask(Commit("t"))
            await actor.ask(get(b"key"))
            await actor.ask(Batch((), (Get(b"key"),)))
        assert (await reader).result[0].number == 1
        await actor.stop()
    storage.close()
    outside = callers.pop(DOOR)
    assert {thread for thread, _ in outside} - {threading.get_ident()}, "no other thread told anything"
    assert {thread for thread, _ in callers.pop(INSIDE)} == {threading.get_ident()}
    assert {"Units.run", "Store.apply", "HeldReplies.release", "Feed.publish"} <= callers.keys()
    owner = {(threading.get_ident(), actor.done.get_name())}
    assert {name: who for name, who in callers.items() if who != owner} == {}


def running() -> str:
    """Return the name of the task that runs; empty for a callback, and in other threads."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return ""
    return task.get_name() if task is not None else ""


#: A name with an underscore that is there for everybody.
PUBLIC: Final = "os._exit"


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
    ]


SOURCES: Final = sorted(Path(kvactor.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_p1_no_module_reaches_into_what_is_anothers(path: Path) -> None:
    assert reached_into(path.read_text()) == []


def test_whoever_reaches_into_another_is_found() -> None:
    assert reached_into("self._mine()\nself._actor._owner\nactor._owner.drain()\nos._exit(1)") == [
        "self._actor._owner",
        "actor._owner",
    ]
