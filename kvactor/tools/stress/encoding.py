"""How the steps of an operation are asked for over HTTP, and what the answers say of them. The one
table of it is `WIRE`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec

from kvactor.tools.stress.client import Answer
from kvactor.tools.stress.history import Changes, Item, Sighting, Step


class Request(NamedTuple):
    """What is sent. `body` is what JSON is made of; None: nothing."""

    method: str
    target: str
    body: Any = None
    headers: Mapping[str, str] = {}


class Wire(NamedTuple):
    """Of a step: what asks for it, at which statuses it is understood, and what the answer says."""

    request: Callable[[Step], Request]
    statuses: frozenset[int]
    said: Callable[[Answer], Any]

    def result(self, answer: Answer) -> Any:
        """Return what an answer says. Raises `ValueError` if it answers something else."""
        with _asked(answer):
            return self.said(answer)


@contextmanager
def _asked(answer: Answer) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, msgspec.MsgspecError) as error:
        what = f"{answer.status} {answer.body[:200]!r}"
        raise ValueError(f"the answer {what} is none to what was asked: {error!r}") from error


def _json(answer: Answer) -> Any:
    return msgspec.json.decode(answer.body)


def _value(answer: Answer) -> list[Any] | None:
    return None if answer.status == HTTPStatus.NOT_FOUND else [_json(answer), answer.etag]


def _seed_value(answer: Answer) -> list[Any] | None:
    return None if answer.status == HTTPStatus.NOT_FOUND else [_json(answer)["value"], None]


def items(answer: Answer) -> list[Item]:
    """Return a page of a scan."""
    return [Item(item["key"], item["value"], item["revision"]) for item in _json(answer)["items"]]


def _listed(page: Any) -> list[list[Any]]:
    return [[item["key"], item["value"], item["revision"]] for item in page["items"]]


def sighting(event: Any) -> Sighting:
    """Return what an event of the feed says."""
    changes: Changes = {item["key"]: item.get("value") for item in event["changes"]}
    return Sighting(event["revision"], changes)


def _put(step: Step) -> Request:
    return Request("PUT", f"/v1/kv/{step.key}", step.argument, JSON)


def _swap(step: Step) -> Request:
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
WIRE: Final[dict[str, Wire]] = {
    "get": Wire(lambda step: Request("GET", f"/v1/kv/{step.key}"), _FOUND, _value),
    "put": Wire(_put, _WRITTEN, lambda answer: answer.status == HTTPStatus.CREATED),
    "swap": Wire(_swap, _WRITTEN | {HTTPStatus.PRECONDITION_FAILED}, lambda answer: answer.ok),
    "delete": Wire(
        lambda step: Request("DELETE", f"/v1/kv/{step.key}"), _FOUND, lambda answer: answer.ok
    ),
    "scan": Wire(_scan, _statuses(HTTPStatus.OK), lambda answer: _listed(_json(answer))),
}

#: Some of them on the routes of old.
SEED: Final[dict[str, Wire]] = {
    "get": Wire(lambda step: Request("GET", f"/get/{step.key}"), _FOUND, _seed_value),
    "put": Wire(
        lambda step: Request("POST", "/set", {"key": step.key, "value": step.argument}),
        _WRITTEN,
        lambda _: None,
    ),
    "delete": Wire(
        lambda step: Request("DELETE", f"/delete/{step.key}"), _FOUND, lambda answer: answer.ok
    ),
}

#: Of a batch's operations: what says them, and what their results say.
_OPERATIONS: Final[dict[str, tuple[Callable[[Step], dict[str, Any]], Callable[[Any], Any]]]] = {
    "put": (lambda step: {"op": "put", "key": step.key, "value": step.argument}, lambda _: None),
    "get": (
        lambda step: {"op": "get", "key": step.key},
        lambda item: None if item is None else [item["value"], item["revision"]],
    ),
    "delete": (lambda step: {"op": "delete", "key": step.key}, lambda result: result["deleted"]),
    "add": (
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
    "clear": (
        lambda step: {"op": "delete_range", "start": step.key, "end": step.argument},
        lambda result: result["deleted"],
    ),
}


def batch(steps: list[Step]) -> Request:
    """Ask for several steps at once."""
    operations = [_OPERATIONS[step.what][0](step) for step in steps]
    return Request("POST", "/v1/batch", {"operations": operations}, JSON)


def batched(steps: list[Step], answer: Answer) -> list[Step]:
    """Return the steps with what the answer says of them. Raises `ValueError` as `Wire.result` does."""
    with _asked(answer):
        results = _json(answer)["results"]
        return [
            resulting(step, _OPERATIONS[step.what][1](result))
            for step, result in zip(steps, results, strict=True)
        ]


def resulting(step: Step, result: Any) -> Step:
    """Return a step with its result."""
    return msgspec.structs.replace(step, result=result)
