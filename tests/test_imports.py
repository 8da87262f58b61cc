"""One direction of import, held by a walk through every import in the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvactor

#: From the top to the ground: a floor may import from those below it, and within itself.
FLOORS = (
    ("kvactor.cli", "kvactor.__main__"),
    ("kvactor.failpoints",),
    ("kvactor.web",),
    ("kvactor.actor",),
    ("kvactor.owner",),
    ("kvactor.operations", "kvactor.changes"),
    ("kvactor.units",),
    ("kvactor.access",),
    ("kvactor.sessions", "kvactor.store", "kvactor.transactions", "kvactor.replies", "kvactor.metrics"),
    ("kvactor.storage",),
    ("kvactor.records", "kvactor.messages", "kvactor.errors", "kvactor.settings"),
)
PURE = (
    "kvactor.owner",
    "kvactor.operations",
    "kvactor.units",
    "kvactor.access",
    "kvactor.changes",
    "kvactor.replies",
    "kvactor.sessions",
    "kvactor.store",
    "kvactor.transactions",
    "kvactor.messages",
)
IMPURE = ("asyncio", "aiohttp", "lmdb", "time", "random", "secrets", "threading", "os", "socket")

ROOT = Path(kvactor.__file__).parent


def floor(module: str) -> int | None:
    """The floor of a module of ours, counted from the top; None for the package itself and for
    others' modules.
    """
    for number, modules in enumerate(FLOORS):
        if any(module == one or module.startswith(one + ".") for one in modules):
            return number
    return None


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def wrong_arrows(module: str, source: str) -> list[str]:
    own = floor(module)
    return [
        name
        for name in imported(source)
        if own is not None and (other := floor(name)) is not None and other < own
    ]


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path.read_text()


@pytest.mark.parametrize(("module", "source"), list(modules()))
def test_imports_run_one_way(module: str, source: str) -> None:
    assert module == "kvactor" or floor(module) is not None, "a new module needs its floor"
    assert not wrong_arrows(module, source)


@pytest.mark.parametrize(("module", "source"), [(m, s) for m, s in modules() if m in PURE])
def test_the_core_imports_no_loop_no_socket_no_disk_and_no_clock(module: str, source: str) -> None:
    assert not [name for name in imported(source) if name.split(".")[0] in IMPURE]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kvactor.store", "from kvactor.actor import StoreActor"),
        ("kvactor.store", "import kvactor.owner"),
        ("kvactor.storage.tree", "from kvactor import store"),
        ("kvactor.records", "from kvactor.storage import Journal"),
        ("kvactor.actor", "def f():\n    import kvactor.web.app"),
    ],
)
def test_an_arrow_that_is_turned_round_is_found(module: str, source: str) -> None:
    assert wrong_arrows(module, source)
