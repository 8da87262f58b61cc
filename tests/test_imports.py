"""One direction of import, held by a walk through every import in the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvactor

#: From the top to the ground: a floor may import from those below it, and within itself.
FLOORS = (
    ("kvactor.cli", "kvactor.__main__"),
    ("kvactor.tools",),
    ("kvactor.failpoints", "kvactor.server"),
    ("kvactor.web",),
    ("kvactor.api",),
    ("kvactor.actor",),
    ("kvactor.metrics", "kvactor.storage"),
    ("kvactor.core.owner",),
    ("kvactor.core.scheduler", "kvactor.core.writer"),
    ("kvactor.core.turns",),
    ("kvactor.core.executor", "kvactor.core.feed"),
    ("kvactor.core.transaction_manager", "kvactor.core.replies"),
    ("kvactor.core.messages",),
    ("kvactor.core.idempotency",),
    ("kvactor.core.operations",),
    ("kvactor.core.keyspace",),
    ("kvactor.core.admission", "kvactor.core.context"),
    ("kvactor.core.store", "kvactor.core.priority"),
    ("kvactor.core.transaction",),
    ("kvactor.core.overlay", "kvactor.core.conflicts", "kvactor.core.protocols"),
    ("kvactor.core.intervals", "kvactor.core.kept"),
    ("kvactor.core.records", "kvactor.core.work", "kvactor.core.memory", "kvactor.core.space"),
    ("kvactor.errors", "kvactor.settings"),
)
PURE = "kvactor.core"
IMPURE = ("asyncio", "aiohttp", "lmdb", "time", "random", "secrets", "threading", "os", "socket")

WEB = ("kvactor.api", "kvactor.web")
#: The modules of the web layer that know aiohttp; all others know requests and responses as values.
ADAPTERS = tuple(
    f"kvactor.web.{name}"
    for name in (
        "aiohttp_response",
        "app",
        "body_reader",
        "connection",
        "dispatcher",
        "ending",
        "guard",
        "logs",
        "parts",
        "server",
    )
)

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
    assert module in {"kvactor", "kvactor.core"} or floor(module) is not None, (
        "a new module needs its floor"
    )
    assert not wrong_arrows(module, source)


@pytest.mark.parametrize(("module", "source"), [(m, s) for m, s in modules() if m.startswith(PURE)])
def test_the_core_imports_no_loop_no_socket_no_disk_and_no_clock(module: str, source: str) -> None:
    assert not [name for name in imported(source) if name.split(".")[0] in IMPURE]


@pytest.mark.parametrize(("module", "source"), [(m, s) for m, s in modules() if m.startswith(WEB)])
def test_only_the_adapters_of_the_web_layer_import_aiohttp(module: str, source: str) -> None:
    knows = [name for name in imported(source) if name.split(".")[0] == "aiohttp"]
    assert bool(knows) == (module in ADAPTERS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kvactor.core.store", "from kvactor.actor import StoreActor"),
        ("kvactor.core.store", "import kvactor.core.owner"),
        ("kvactor.storage.tree", "import kvactor.actor"),
        ("kvactor.core.records", "from kvactor.core.protocols import Journal"),
        ("kvactor.actor", "def f():\n    import kvactor.web.app"),
    ],
)
def test_an_arrow_that_is_turned_round_is_found(module: str, source: str) -> None:
    assert wrong_arrows(module, source)
