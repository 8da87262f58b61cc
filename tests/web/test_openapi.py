"""The API's description has the application's routes, and /docs shows it without other servers."""

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from kvactor.actor import StoreActor
from kvactor.settings import Settings
from kvactor.web.app import create_app
from kvactor.web.errors import STATUS
from tests.web.conftest import Client

Document = dict[str, Any]


@pytest.fixture
async def document(client: Client) -> Document:
    answer = await client.get("/openapi.json")
    assert (answer.status, answer.content_type) == (200, "application/json")
    described: Document = await answer.json()
    return described


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def test_the_application_and_its_description_have_the_same_routes(
    document: Document, actor: StoreActor, settings: Settings
) -> None:
    served = set()
    for route in create_app(actor, settings).router.routes():
        assert route.resource is not None
        if route.method != "*":
            served.add((route.method, route.resource.canonical))
    assert {(method, path) for method, path, _ in operations(document)} == served


async def test_every_error_of_the_table_is_in_the_description(document: Document) -> None:
    told = set()
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            told |= {(status, code) for code in re.findall("^- `(.+?)`", answer["description"], re.M)}
    assert told >= {(str(int(status)), kind.code) for kind, status in STATUS.items()}


async def test_every_reference_in_the_description_resolves(document: Document) -> None:
    components = document["components"]["schemas"]
    names = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert names
    assert names <= set(components)


async def test_operations_have_unique_ids(document: Document) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(operation["summary"] for _, _, operation in operations(document))


async def test_the_documentation_loads_from_this_server_alone(client: Client) -> None:
    page = await client.get("/docs")
    assert (page.status, page.content_type) == (200, "text/html")
    text = await page.text()
    links = re.findall("""(?:src|href|spec-url)="(.*?)\"""", text)
    assert "/openapi.json" in links
    for link in links:
        if link != "data:,":
            assert (await client.get(link)).status == 200
    assert "//" not in text


@pytest.mark.parametrize("path", ["/docs", "/docs/rapidoc-min.js"])
async def test_a_browser_may_load_nothing_from_elsewhere(client: Client, path: str) -> None:
    answer = await client.get(path)
    policy = dict(
        one.strip().split(" ", 1) for one in answer.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert {word for words in policy.values() for word in words.split()} <= {
        "'none'",
        "'self'",
        "'unsafe-inline'",
        "data:",
    }
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_viewer_comes_with_its_licences() -> None:
    names = {file.name for file in (files("kvactor.web") / "viewer").iterdir()}
    assert {"LICENSE.txt", "rapidoc-min.js", "rapidoc-min.js.LICENSE.txt"} <= names
