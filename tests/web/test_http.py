"""Requests become messages and answers become responses: pure functions, without a loop or a server."""

from http import HTTPStatus
from typing import Any

import msgspec
import pytest
from multidict import CIMultiDict

from kvactor.api.changes import ChangesQuery
from kvactor.api.keys import ScanQuery
from kvactor.core import records
from kvactor.core.messages import AUTOCOMMIT, SHARED, Answer, Batch, BatchResponse, Execute
from kvactor.core.operations import Delete, Get, Set
from kvactor.errors import InvalidKey, InvalidRequest, KeyAndValueRequired, KeyNotFound, Overloaded
from kvactor.web import simple
from kvactor.web.errors import error_response, status_response
from kvactor.web.http import (
    MAX_QUOTED,
    Request,
    idempotency_key,
    json_body,
    key_in_path,
    query,
    query_pairs,
    transaction,
)
from kvactor.web.v1 import batch, keys

JSON_RECORD = records.encode(b"a/b", b'{"x":  1}', "application/json", revision=4, created=2)
BINARY_RECORD = records.encode(b"a/b", b"\xff", "image/png", revision=4, created=2)


def request(target: str, body: bytes = b"", /, **headers: str) -> Request:
    fields = {name.replace("_", "-"): text for name, text in headers.items()}
    return Request("GET", target, CIMultiDict(fields), body)


# -- parts of a request --


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("/get/a", b"a"),
        ("/get/a/b?c=d", b"a/b"),
        ("/get/a%2Fb%25", b"a/b%"),
        ("/get/%C3%A9", "é".encode()),
    ],
)
def test_key_in_path_is_decoded_once(target: str, key: bytes) -> None:
    assert key_in_path(request(target), "/get/") == key


@pytest.mark.parametrize("target", ["/get/%", "/get/%4", "/get/%zz", "/get/%FF", "/get/\udcff"])
def test_key_in_path_that_is_no_utf_8_is_refused(target: str) -> None:
    with pytest.raises(InvalidKey):
        key_in_path(request(target), "/get/")


def test_key_in_path_behind_an_escaped_prefix_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        key_in_path(request("/g%65t/a"), "/get/")


def test_headers_are_found_in_any_case() -> None:
    assert transaction(request("/", KVACTOR_TRANSACTION="id"), SHARED) == "id"
    assert transaction(request("/"), AUTOCOMMIT) is AUTOCOMMIT


def test_query_is_decoded_and_converted() -> None:
    asked = request("/v1/kv?prefix=a%20b&limit=7&reverse=true&end=")
    assert query(asked, ScanQuery) == ScanQuery(prefix="a b", limit=7, reverse=True, end="")
    assert list(query_pairs(asked)) == ["prefix", "limit", "reverse", "end"]


@pytest.mark.parametrize("text", ["limit=0", "limit=x", "other=1", "limit=1&limit=1", "prefix=%FF"])
def test_query_with_another_field_or_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        query(request(f"/v1/kv?{text}"), ScanQuery)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("limit=0", "limit=0 in the query is not what is expected: Expected `int` >= 1"),
        ("wait=x", "wait=x in the query is not what is expected: Expected `float`, got `str`"),
        (
            "since=then",
            (
                "since=then in the query is not what is expected: revisions after this one; 0: from "
                "the first; now: only new ones"
            ),
        ),
        ("sinec=1", "The query is not what is expected here: Object contains unknown field `sinec`"),
        (
            f"limit={'x' * 200}",
            f"limit={'x' * MAX_QUOTED} in the query is not what is expected: Expected `int`, got `str`",
        ),
    ],
)
def test_an_error_of_the_query_names_the_field_and_what_is_expected(text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        query(request(f"/v1/changes?{text}"), ChangesQuery)
    assert str(caught.value) == sentence


def test_idempotency_key_has_a_fingerprint_of_all_that_decides_the_write() -> None:
    def fingerprint(target: str = "/set", body: bytes = b"1", **headers: str) -> bytes:
        key = idempotency_key(request(target, body, Idempotency_Key="k", **headers))
        assert key is not None
        return key.fingerprint

    others = [
        fingerprint("/set?x"),
        fingerprint(body=b"2"),
        fingerprint(Content_Type="text/plain"),
        fingerprint(If_Match='"1"'),
        fingerprint(If_Match='"1", "2"'),
        fingerprint(If_None_Match="*"),
        fingerprint(Kvactor_Transaction="id"),
    ]
    assert fingerprint() == fingerprint(User_Agent="another")
    assert len({fingerprint(), *others}) == 1 + len(others)
    assert idempotency_key(request("/set")) is None


def test_the_fingerprint_has_all_lines_of_a_list() -> None:
    def fingerprint(*lines: str) -> bytes:
        fields = CIMultiDict([("Idempotency-Key", "k"), *(("If-Match", line) for line in lines)])
        key = idempotency_key(Request("PUT", "/v1/kv/a", fields))
        assert key is not None
        return key.fingerprint

    assert fingerprint('"1"', '"2"') == fingerprint('"1", "2"') != fingerprint('"1"')


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_idempotency_key_of_another_length_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest):
        idempotency_key(request("/set", Idempotency_Key=key))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b'{"a":' + b"[" * 100_000])
def test_json_body_of_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        json_body(request("/set", body), msgspec.json.Decoder(dict[str, Any]))


# -- the simple routes --


def test_set_parses_to_one_operation_in_the_shared_transaction() -> None:
    parsed = simple.parse_set(request("/set", b'{"key": "a", "value":  [1, 2]}'))
    assert parsed == Execute(Set(b"a", b"[1, 2]", "application/json"), SHARED)


def test_set_with_an_idempotency_key_parses_to_a_batch_of_one() -> None:
    asked = request("/set", b'{"key": "a", "value": 1}', Idempotency_Key="k", Kvactor_Transaction="id")
    parsed = simple.parse_set(asked)
    operations = (Set(b"a", b"1", "application/json"),)
    assert parsed == Batch(operations, (), "id", idempotency_key(asked))


@pytest.mark.parametrize("body", [b"{}", b'{"key": "a"}', b'{"key": "", "value": 1}'])
def test_set_without_a_key_or_a_value_has_its_own_sentence(body: bytes) -> None:
    with pytest.raises(KeyAndValueRequired, match=r"^Key and value are required$"):
        simple.parse_set(request("/set", body))


@pytest.mark.parametrize(
    ("record", "body"),
    [
        (JSON_RECORD, b'{"key":"a/b","value":{"x":  1}}'),
        (BINARY_RECORD, b'{"key":"a/b","value_base64":"/w=="}'),
    ],
)
def test_get_encodes_the_json_text_as_it_was_stored(record: bytes, body: bytes) -> None:
    asked = request("/get/a%2Fb")
    parsed = simple.parse_get(asked)
    assert parsed == Execute(Get(b"a/b"), SHARED)
    response = simple.encode_get(asked, parsed, Answer(9, record))
    assert (response.status, response.revision, response.body) == (200, 9, body)


def test_get_of_a_missing_key_is_an_error_of_encode() -> None:
    asked = request("/get/a")
    with pytest.raises(KeyNotFound, match=r"^Key not found$"):
        simple.encode_get(asked, simple.parse_get(asked), Answer(9, None))


# -- /v1 --


def test_put_parses_its_type_and_its_time_to_live() -> None:
    parsed = keys.parse_put(request("/v1/kv/a?ttl=1.5", b"x", Content_Type="text/plain"))
    assert isinstance(parsed, Execute)
    assert isinstance(parsed.operation, Set)
    assert (parsed.operation.content_type, parsed.operation.ttl) == ("text/plain", 1500)
    assert parsed.transaction is AUTOCOMMIT


def test_delete_with_a_precondition_parses_to_a_checked_batch() -> None:
    parsed = keys.parse_delete(request("/v1/kv/a", If_Match='"7"'))
    assert isinstance(parsed, Batch)
    assert [check.precondition for check in parsed.checks] == [(7,)]
    assert [type(operation) for operation in parsed.operations] == [Delete]


@pytest.mark.parametrize(("headers", "status"), [({}, 200), ({"If_None_Match": '"4"'}, 304)])
def test_get_encodes_the_value_or_that_it_is_known(headers: dict[str, str], status: int) -> None:
    asked = request("/v1/kv/a/b", **headers)
    response = keys.encode_get(asked, keys.parse_get(asked), Answer(9, BINARY_RECORD))
    assert (response.status, response.content_type) == (status, "image/png")
    assert response.body == (b"\xff" if status == 200 else b"")
    assert response.headers["ETag"] == '"4"'


def test_batch_encodes_a_result_for_each_operation() -> None:
    body = b'{"operations": [{"op": "get", "key": "a/b"}, {"op": "increment", "key": "n"}]}'
    asked = request("/v1/batch", body)
    answer = Answer(9, BatchResponse(9, [JSON_RECORD, 1]))
    message = batch.BatchRoutes(10_000).parse(asked)
    shown: Any = msgspec.json.decode(batch.encode_batch(asked, message, answer).body)
    assert shown["revision"] == 9
    assert [shown["results"][0]["key"], shown["results"][1]] == ["a/b", {"value": 1}]


def test_batch_says_which_operation_makes_no_sense() -> None:
    body = b'{"operations": [{"op": "get", "key": "a"}, {"op": "delete_range"}]}'
    with pytest.raises(InvalidRequest) as raised:
        batch.BatchRoutes(10_000).parse(request("/v1/batch", body))
    assert raised.value.details == {"operation": 1}


# -- errors --


def test_an_error_response_is_true_at_the_errors_own_revision() -> None:
    error = Overloaded("Try again.")
    assert error_response("/set", error, 3).revision == 3
    error.revision = 2
    response = error_response("/set", error, 3)
    assert (response.revision, response.status, response.headers) == (2, 503, {"Retry-After": "1"})
    assert response.body == b'{"error":"Try again."}'


def test_an_error_on_v1_is_a_problem_document_with_its_details() -> None:
    error = InvalidRequest("Bad.", {"operation": 1})
    response = error_response("/v1/batch", error, 0)
    assert response.content_type == "application/problem+json"
    assert msgspec.json.decode(response.body) == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "code": "invalid_request",
        "detail": "Bad.",
        "operation": 1,
    }


def test_a_refused_method_names_those_that_there_are() -> None:
    status = HTTPStatus.METHOD_NOT_ALLOWED
    response = status_response("/set", 0, status, "method_not_allowed", "No.", allow="POST")
    assert response.headers == {"Allow": "POST"}
