"""README and docs/ name every route, error, metric, operation and limit, and no other."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvactor.actor import StoreActor
from kvactor.api.batch import BatchBody
from kvactor.core.messages import StatusReport
from kvactor.metrics import Metrics
from kvactor.settings import Settings, table
from kvactor.web.app import TAGS, create_app
from kvactor.web.errors import INTERNAL_ERROR, STATUS
from tests.examples import DOCUMENTS, ROOT, blocks

DOCS = ROOT / "docs"

#: Errors with which aiohttp refuses what never gets to a handler.
REFUSALS = {"not_found", "method_not_allowed", "expectation_failed"}

#: A file or a folder of the repository, or of `kvactor/`.
PATH = re.compile(r"(?:\w+/)*\w+\.(?:py|md)|(?:\w+/)+\w*")

LINK = re.compile(r"\]\(([^)]*)\)")
LIMIT = re.compile(r"`([a-z_]+)`(?:: |[a-z\s]* \()([\d,]+)( KiB| MiB| ms|)")
UNITS = {"": 1, " ms": 0.001, " KiB": 1024, " MiB": 1024 * 1024}


def rows(document: str, header: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the table with this header."""
    _, found, below = (DOCS / document).read_text().partition(f"{header}\n|---")
    assert found, header
    for line in below.splitlines()[1:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def named(cell: str) -> list[str]:
    """Return what is in backticks."""
    return re.findall("`(.+?)`", cell)


async def test_the_routes_are_those_of_the_application(actor: StoreActor, settings: Settings) -> None:
    tags = create_app(actor, settings)[TAGS]
    served = {(route.method, route.name) for routes in tags.values() for route in routes}
    listed = {
        (method, path)
        for request, _ in rows("api.md", "| request | what |")
        for part in request.split(";")
        for method in named(part)
        for path in named(part)
        if path.startswith("/") and not method.startswith("/")
    }
    assert listed == served


def test_the_errors_have_their_statuses_and_meanings() -> None:
    told = {
        kind.code: (str(int(status)), " ".join((inspect.getdoc(kind) or "").split()))
        for kind, status in STATUS.items()
    }
    listed = {
        named(code)[0]: (status, f"Is raised {when}")
        for code, status, when in rows("api.md", "| code | status | when |")
    }
    others = {code: listed.pop(code) for code in REFUSALS | {INTERNAL_ERROR}}
    assert listed == told
    assert len(others) == 4


def test_the_metrics_have_their_types_and_help() -> None:
    zeros = dict.fromkeys(StatusReport.__struct_fields__, 0)
    report = msgspec.convert(zeros | {"stalled": False}, StatusReport)
    text = Metrics().text(report, 0, 0).decode()
    shown = {
        family.name + "_total" * (family.type == "counter"): (family.type, family.documentation)
        for family in text_string_to_metric_families(text)
    }
    listed = {
        named(name)[0]: (kind, what)
        for name, kind, what in rows("metrics.md", "| metric | type | what |")
    }
    assert listed == shown


def test_the_operations_of_a_batch_have_their_fields() -> None:
    (operations,) = get_args(get_type_hints(BatchBody)["operations"])
    taken = {
        kind.__struct_config__.tag: set(kind.__struct_encode_fields__) for kind in get_args(operations)
    }
    listed = {
        named(name)[0]: set(named(fields))
        for name, fields, _ in rows("batches.md", "| `op` | fields | result |")
    }
    assert listed == taken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_documented_limit_is_the_default(document: Path) -> None:
    defaults = {setting.name: setting.default for setting in table()}
    for name, number, unit in LIMIT.findall(document.read_text()):
        told = int(number.replace(",", "")) * UNITS[unit]
        assert told == defaults[name], name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_resolves(document: Path) -> None:
    text = document.read_text()
    for block in blocks(text):
        text = text.replace(block.text, "")
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.is_file(), link
        if anchor:
            titles = re.findall("^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, link


def missing_paths(text: str) -> list[str]:
    paths = [name for name in named(text) if PATH.fullmatch(name)]
    assert paths
    return [
        path for path in paths if not any((top / path).exists() for top in (ROOT, ROOT / "kvactor"))
    ]


def test_every_path_in_the_readmes_sections_on_the_source_exists() -> None:
    _, found, text = (ROOT / "README.md").read_text().partition("\n## Reading the source\n")
    assert found
    assert missing_paths(text) == []


def test_every_path_in_a_module_docstring_exists() -> None:
    modules = (ROOT / "kvactor").rglob("*.py")
    docstrings = [ast.get_docstring(ast.parse(path.read_text())) or "" for path in modules]
    assert missing_paths("\n".join(docstrings)) == []
