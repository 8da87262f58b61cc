"""How the steps of an operation become requests, and responses their results. The tables are `V1` and,
for the simple routes, `SIMPLE`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec

from kvactor.tools.http import Response
from kvactor.tools.stress.history import Changes, FeedEvent, Item, Step


class Request(NamedTuple):
    """A request. `body` is encoded as JSON; None: it has none."""

    method: str
    target: str
    body: Any = None
    headers: Mapping[str, str] = {}


class Encoding(NamedTuple):
    """Of a step: its request, the statuses that a result may have, and the result in a response."""

    request: Callable[[Step], Request]
    statuses: frozenset[int]
    decode: Callable[[Response], Any]

    def result(self, response: Response) -> Any:
        """Return a response's result. Raises `ValueError` if the response has another form."""
        with _expecting(response):
            return self.decode(response)


@contextmanager
def _expecting(response: Response) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, msgspec.MsgspecError) as error:
        what = f"{response.status} {response.body[:200]!r}"
        raise ValueError(f"the response {what} does not fit its request: {error!r}") from error


def _json(response: Response) -> Any:
    return msgspec.json.decode(response.body)


def _value(response: Response) -> list[Any] | None:
    return None if response.status == HTTPStatus.NOT_FOUND else [_json(response), response.etag]


def _simple_value(response: Response) -> list[Any] | None:
    return None if response.status == HTTPStatus.NOT_FOUND else [_json(response)["value"], None]


def items(response: Response) -> list[Item]:
    """Return a page of a scan."""
    return [Item(item["key"], item["value"], item["revision"]) for item in _json(response)["items"]]


def _listed(page: Any) -> list[list[Any]]:
    return [[item["key"], item["value"], item["revision"]] for item in page["items"]]


def feed_event(event: Any) -> FeedEvent:
    """Decode an event of the feed."""
    changes: Changes = {item["key"]: item.get("value") for item in event["changes"]}
    expiries = {
        item["key"]: _milliseconds(item["expires_at"])
        for item in event["changes"]
        if item.get("expires_at") is not None
    }
    return FeedEvent(event["revision"], changes, expiries, _milliseconds(event["time"]))


def _milliseconds(moment: str) -> int:
    """Return a time, given as RFC 3339 has it, in milliseconds since the epoch."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def _put(step: Step) -> Request:
    query = f"?ttl={step.ttl / 1000}" if step.ttl else ""
    return Request("PUT", f"/v1/kv/{step.key}{query}", step.argument, JSON)


def _put_in_batch(step: Step) -> dict[str, Any]:
    put = {"op": "put", "key": step.key, "value": step.argument}
    return put | ({"ttl": step.ttl / 1000} if step.ttl else {})


def _cas(step: Step) -> Request:
    expected, value = step.argument
    match = {"If-Match": f'"{expected}"'} if expected else {"If-None-Match": "*"}
    return Request("PUT", f"/v1/kv/{step.key}", value, {**JSON, **match})


def _scan(step: Step) -> Request:
    end, limit, reverse = step.argument
    query = f"start={step.key}&end={end}&limit={limit}"
    return Request("GET", f"/v1/kv?{query}" + ("&reverse=true" if reverse else ""))


def _statuses(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}

_FOUND: Final = _statuses(HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND)
_WRITTEN: Final = _statuses(HTTPStatus.OK, HTTPStatus.CREATED)

#: The steps that are requests of their own.
V1: Final[dict[str, Encoding]] = {
    "get": Encoding(lambda step: Request("GET", f"/v1/kv/{step.key}"), _FOUND, _value),
    "put": Encoding(_put, _WRITTEN, lambda response: response.status == HTTPStatus.CREATED),
    "cas": Encoding(_cas, _WRITTEN | {HTTPStatus.PRECONDITION_FAILED}, lambda response: response.ok),
    "delete": Encoding(
        lambda step: Request("DELETE", f"/v1/kv/{step.key}"), _FOUND, lambda response: response.ok
    ),
    "scan": Encoding(_scan, _statuses(HTTPStatus.OK), lambda response: _listed(_json(response))),
}

#: Some of them on the simple routes.
SIMPLE: Final[dict[str, Encoding]] = {
    "get": Encoding(lambda step: Request("GET", f"/get/{step.key}"), _FOUND, _simple_value),
    "put": Encoding(
        lambda step: Request("POST", "/set", {"key": step.key, "value": step.argument}),
        _WRITTEN,
        lambda _: None,
    ),
    "delete": Encoding(
        lambda step: Request("DELETE", f"/delete/{step.key}"), _FOUND, lambda response: response.ok
    ),
}

#: Of a batch's operations: their JSON, and what is decoded from the JSON of their results.
_OPERATIONS: Final[dict[str, tuple[Callable[[Step], dict[str, Any]], Callable[[Any], Any]]]] = {
    "put": (_put_in_batch, lambda _: None),
    "get": (
        lambda step: {"op": "get", "key": step.key},
        lambda item: None if item is None else [item["value"], item["revision"]],
    ),
    "delete": (lambda step: {"op": "delete", "key": step.key}, lambda result: result["deleted"]),
    "increment": (
        lambda step: {"op": "increment", "key": step.key, "by": step.argument},
        lambda result: result["value"],
    ),
    "scan": (
        lambda step: (
            {"op": "range", "start": step.key}
            | dict(zip(("end", "limit", "reverse"), step.argument, strict=True))
        ),
        _listed,
    ),
    "delete_range": (
        lambda step: {"op": "delete_range", "start": step.key, "end": step.argument},
        lambda result: result["deleted"],
    ),
}


def batch(steps: list[Step]) -> Request:
    """Return the request for several steps at once."""
    operations = [_OPERATIONS[step.what][0](step) for step in steps]
    return Request("POST", "/v1/batch", {"operations": operations}, JSON)


def batched(steps: list[Step], response: Response) -> list[Step]:
    """Return the steps with their results. Raises `ValueError` as `Encoding.result` does."""
    with _expecting(response):
        results = _json(response)["results"]
        return [
            resulting(step, _OPERATIONS[step.what][1](result))
            for step, result in zip(steps, results, strict=True)
        ]


def resulting(step: Step, result: Any) -> Step:
    """Return a step with its result."""
    return msgspec.structs.replace(step, result=result)
