"""What the tests of /v1 share: requests whose targets go out as they are written, and what problem
documents say.
"""

import json
from collections.abc import Mapping

from multidict import CIMultiDict
from yarl import URL

from tests.web.conftest import Answer, Client

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


async def ask(
    client: Client,
    method: str,
    target: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    within: str | None = None,
) -> Answer:
    """Send a request, perhaps within a transaction. A body that is not bytes goes as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    inside = {} if within is None else {"Kvactor-Transaction": within}
    async with client.request(
        method,
        URL(target, encoded=True),
        data=data,
        headers=CIMultiDict([*(headers or {}).items(), *inside.items()]),
        skip_auto_headers=["Content-Type"],
        allow_redirects=False,
    ) as response:
        return Answer(response.status, CIMultiDict(response.headers), await response.read())


async def put(client: Client, key: str, value: object = 1, within: str | None = None) -> Answer:
    """Store JSON under a key, and expect that it is stored."""
    answer = await ask(client, "PUT", f"/v1/kv/{key}", value, JSON, within)
    assert answer.status in {200, 201}
    return answer


async def opened(client: Client) -> str:
    """Open a transaction and return its id."""
    answer = await ask(client, "POST", "/v1/transactions")
    assert answer.status == 201
    id_: str = answer.json()["id"]
    return id_


async def commit(client: Client, within: str) -> Answer:
    """Commit a transaction."""
    return await ask(client, "POST", f"/v1/transactions/{within}/commit")


async def keys(client: Client, query: str = "", within: str | None = None) -> list[str]:
    """Return the keys of a scan."""
    answer = await ask(client, "GET", f"/v1/kv?limit=1000{query}", within=within)
    assert answer.status == 200
    return [item["key"] for item in answer.json()["items"]]


def problem(answer: Answer) -> tuple[int, str]:
    """Return status and code of an answer that has to be a problem document (RFC 9457)."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    told = answer.json()
    assert {"type", "title", "status", "code", "detail"} <= set(told)
    assert (told["type"], told["status"]) == ("about:blank", answer.status)
    assert told["title"]
    assert told["detail"]
    assert answer.revision >= 0
    return answer.status, told["code"]
