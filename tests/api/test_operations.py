"""The operations of a batch: from JSON to the core's and back, without a server."""

from typing import Any, get_args

import msgspec
import pytest

from kvactor.api.batch import BatchBody, BatchCheck
from kvactor.api.operations import AnyOp, to_json
from kvactor.core import records
from kvactor.core.context import Page
from kvactor.core.messages import Check, Presence
from kvactor.core.operations import Delete, DeleteRange, Get, Increment, Operation, Range, Set
from kvactor.errors import InvalidRequest

RECORD = records.encode(b"a", b"[1]", "application/json", revision=3, created=3)
ITEM = {
    "key": "a",
    "revision": 3,
    "content_type": "application/json",
    "expires_at": None,
    "value": [1],
}

CASES: list[tuple[dict[str, object], Operation[Any], Any, object]] = [
    ({"op": "put", "key": "a", "value": [1]}, Set(b"a", b"[1]", "application/json"), True, {}),
    (
        {"op": "put", "key": "a", "value": "hé", "content_type": "text/plain", "ttl": 1.5},
        Set(b"a", "hé".encode(), "text/plain", 1500),
        False,
        {},
    ),
    (
        {"op": "put", "key": "a", "value_base64": "AP8="},
        Set(b"a", b"\x00\xff", "application/octet-stream"),
        True,
        {},
    ),
    ({"op": "get", "key": "a"}, Get(b"a"), RECORD, ITEM),
    ({"op": "get", "key": "a"}, Get(b"a"), None, None),
    ({"op": "delete", "key": "a"}, Delete(b"a"), True, {"deleted": True}),
    ({"op": "increment", "key": "a", "by": -2}, Increment(b"a", -2), 7, {"value": 7}),
    (
        {"op": "range", "prefix": "a", "end": "aa", "limit": 1, "reverse": True},
        Range(b"a", b"aa", 1, reverse=True),
        Page([(b"a", RECORD)], b"a"),
        {"items": [ITEM], "more": True},
    ),
    ({"op": "delete_range", "prefix": "a"}, DeleteRange(b"a", b"b"), 2, {"deleted": 2}),
]


@pytest.mark.parametrize(("text", "core", "result", "shown"), CASES)
def test_an_operation_in_json_becomes_the_cores_and_its_result_json_again(
    text: dict[str, object], core: Operation[Any], result: Any, shown: object
) -> None:
    (operation,) = msgspec.json.decode(
        msgspec.json.encode({"operations": [text]}), type=BatchBody
    ).operations
    assert operation.to_core() == core
    assert msgspec.json.decode(msgspec.json.encode(to_json(core, result))) == shown


def test_the_cases_cover_every_operation() -> None:
    assert {text["op"] for text, _, _, _ in CASES} == {
        kind.__struct_config__.tag for kind in get_args(AnyOp)
    }


@pytest.mark.parametrize(
    "text",
    [
        {"op": "put", "key": "a"},
        {"op": "put", "key": "a", "value": 1, "value_base64": ""},
        {"op": "put", "key": "a", "value_base64": "!"},
        {"op": "put", "key": "a", "value": 1, "content_type": "text/plain"},
        {"op": "delete_range"},
    ],
)
def test_an_operation_that_makes_no_sense_is_an_invalid_request(text: dict[str, object]) -> None:
    operation: AnyOp = msgspec.json.decode(msgspec.json.encode(text), type=AnyOp)
    with pytest.raises(InvalidRequest):
        operation.to_core()


def test_a_check_of_null_is_a_check_of_absence() -> None:
    assert BatchCheck("a", None).to_core() == Check(b"a", Presence.ABSENT)
    assert BatchCheck("a", 0).to_core() == Check(b"a", (0,))
