"""P1, from within: only the loop's thread touches what the owner has, and nobody reaches into what is
another's.
"""

import ast
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
from kvactor.changes import Feed
from kvactor.messages import Changes, Commit, Get, Open, Set
from kvactor.operations import Operations
from kvactor.owner import Owner
from kvactor.replies import HeldReplies
from kvactor.sessions import Sessions
from kvactor.settings import Settings
from kvactor.storage.directory import open_directory
from kvactor.store import Store

#: What only the loop's thread may call.
OWNED: Final = (StoreActor, Owner, Operations, Sessions, Store, HeldReplies, Feed)

#: What other threads call, to have the loop be told.
DOOR: Final = "StoreActor._post"


async def test_p1_whatever_the_disk_does_only_the_loops_thread_touches_what_the_owner_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[int]] = defaultdict(set)

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            threads[name].add(threading.get_ident())
            return function(*arguments, **named)

        return wrapper

    for kind in OWNED:
        for name, function in list(vars(kind).items()):
            if isfunction(function):
                monkeypatch.setattr(kind, name, noted(f"{kind.__name__}.{name}", function))
    # So that flushes and folds follow one another, each in a thread of its own.
    actor = StoreActor(open_directory(tmp_path, 1 << 30), Settings(memtable_size=1))
    await actor.start()
    reader = actor.ask(Changes(0, 1, wait=True))
    for number in range(5):
        await actor.ask(Open(f"{number}"))
        await actor.ask(Set(b"key", b"%d" % number, "text/plain", f"{number}"))
        await actor.ask(Commit(f"{number}"))
        await actor.ask(Get(b"key"))
    assert (await reader).result[0].number == 1
    await actor.stop()
    others = threads.pop(DOOR)
    assert len(others) > 1, "nothing was told by another thread, so nothing was tested"
    assert {"Store.apply", "Store.thaw", "HeldReplies.release", "StoreActor._put"} <= threads.keys()
    elsewhere = {name for name, idents in threads.items() if idents != {threading.get_ident()}}
    assert elsewhere == set()


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
