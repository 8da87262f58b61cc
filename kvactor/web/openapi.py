"""The description of the HTTP API, OpenAPI 3.1: a pure function of the routes, of the types of their
bodies, queries and responses, and of the table of errors.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

import kvactor
from kvactor.api.errors import Problem, SimpleError
from kvactor.api.values import JSON
from kvactor.errors import (
    CrossOrigin,
    HostNotAllowed,
    InvalidKey,
    InvalidRequest,
    KvactorError,
    Overloaded,
    TooManyConnections,
)
from kvactor.web.errors import INTERNAL_ERROR, PROBLEM_JSON, STATUS, has_problems, in_v1
from kvactor.web.routes import OWNER_ERRORS, RETRY_AFTER, REVISION_HEADER, VARY, Header, Route

Document = dict[str, Any]

_REFERENCE = "#/components/schemas/{name}"

_ABOUT = """
Every response has the header `Kvactor-Revision`: the revision of the store at which it was true. Errors
on `/v1` are problem documents (RFC 9457) with a stable `code`; elsewhere they are `{"error"}`. A path
that is not listed here gets 404 `not_found`, a method that is not listed 405 `method_not_allowed` and
`Allow`, an `Expect` other than `100-continue` 417 `expectation_failed`.
"""


def document(tags: Mapping[str, Sequence[Route]], max_key_size: int) -> Document:
    """Return the description of routes, by tag."""
    schemas = _Schemas(_types(route for routes in tags.values() for route in routes))
    paths: dict[str, Document] = defaultdict(dict)
    for tag, routes in tags.items():
        for route in routes:
            paths[route.name][route.method.lower()] = _operation(route, tag, schemas, max_key_size)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvactor",
            "version": kvactor.__version__,
            "summary": "A transactional key-value server.",
            "description": _ABOUT.strip(),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": dict(paths),
        "components": {"schemas": schemas.components},
    }


def errors_of(route: Route) -> dict[HTTPStatus, list[type[KvactorError]]]:
    """Return the errors of a route, by status."""
    kinds: list[type[KvactorError]] = [
        InvalidRequest,
        CrossOrigin,
        HostNotAllowed,
        TooManyConnections,
        Overloaded,
        *([InvalidKey] if "{key}" in route.name else []),
        *(OWNER_ERRORS if route.asks else ()),
        *(kind for header in route.headers for kind in header.errors),
        *(route.body.errors if route.body else ()),
        *route.errors,
    ]
    found: dict[HTTPStatus, list[type[KvactorError]]] = defaultdict(list)
    for kind in dict.fromkeys(kinds):
        found[STATUS[kind]].append(kind)
    return found


class _Schemas:
    """JSON Schema of types, and the components that it refers to."""

    def __init__(self, types: Iterable[Any]) -> None:
        types = list({repr(kind): kind for kind in types}.values())
        schemas, self.components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
        self._schemas = dict(zip(map(repr, types), schemas, strict=True))

    def of(self, kind: Any) -> Document:
        """Return the schema of a type."""
        return self._schemas[repr(kind)]

    def query(self, kind: type[msgspec.Struct]) -> Document:
        """Return the schemas of a query's fields, by name."""
        fields: Document = self.components[self.of(kind)["$ref"].rpartition("/")[2]]["properties"]
        return fields


def _types(routes: Iterable[Route]) -> Iterator[Any]:
    yield from (Problem, SimpleError, *(one.type for one in (REVISION_HEADER, RETRY_AFTER)))
    for route in routes:
        if route.query:
            yield route.query
        if route.body:
            yield from _kinds(route.body.content)
        yield from (header.type for header in route.headers)
        for spec in route.responses.values():
            yield from _kinds(spec.content)
            yield from (header.type for header in spec.headers)


def _kinds(content: Mapping[str, Any]) -> Iterator[Any]:
    return (kind for kind in content.values() if kind not in {bytes, None})


def _operation(route: Route, tag: str, schemas: _Schemas, max_key_size: int) -> Document:
    operation: Document = {
        "operationId": "_".join(re.findall(r"\w+", f"{route.method.lower()} {route.name}")),
        "summary": route.summary,
        "tags": [tag],
    }
    parameters = [*_in_path(route, max_key_size), *_in_query(route, schemas)]
    parameters += [{"in": "header", "name": one.name, **_header(one, schemas)} for one in route.headers]
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        operation["requestBody"] = {
            "required": route.body.required,
            "content": _content(route.body.content, schemas),
        }
    responses = {
        status: _response(spec.description, spec.headers, _content(spec.content, schemas), schemas)
        for status, spec in route.responses.items()
    }
    kinds = errors_of(route)
    kinds.setdefault(HTTPStatus.INTERNAL_SERVER_ERROR, [])
    for status, those in kinds.items():
        headers = [RETRY_AFTER] if status is HTTPStatus.SERVICE_UNAVAILABLE else []
        headers += [VARY] if in_v1(route.path) else []
        content = {} if route.method == "HEAD" else _error(route, status, those)
        responses[int(status)] = _response(_meaning(status, those), headers, content, schemas)
    operation["responses"] = {str(status): responses[status] for status in sorted(responses)}
    return operation


def _in_path(route: Route, max_key_size: int) -> list[Document]:
    return [
        {
            "in": "path",
            "name": name,
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": max_key_size},
        }
        for name in re.findall("{(.+?)}", route.name)
    ]


def _in_query(route: Route, schemas: _Schemas) -> list[Document]:
    return [
        {"in": "query", "name": name, **_described(_bounded(schema, route.maximums.get(name)))}
        for name, schema in (schemas.query(route.query) if route.query else {}).items()
    ]


def _bounded(schema: Document, maximum: int | None) -> Document:
    """Return a field's schema for a query, in which there is no null, with an upper bound."""
    if schema.get("default", ...) is None:
        (kind,) = (one for one in schema["anyOf"] if one != {"type": "null"})
        about = {name: text for name, text in schema.items() if name not in {"anyOf", "default"}}
        return {**kind, **about}
    return schema if maximum is None else {**schema, "maximum": maximum}


def _described(schema: Document) -> Document:
    """Return a schema with its description beside it, where parameters have theirs."""
    bare = {name: text for name, text in schema.items() if name != "description"}
    about = {"description": schema["description"]} if "description" in schema else {}
    return {**about, "schema": bare}


def _header(header: Header, schemas: _Schemas) -> Document:
    return {
        "description": header.description,
        "required": header.required,
        "schema": schemas.of(header.type),
    }


def _content(content: Mapping[str, Any], schemas: _Schemas) -> Document:
    return {
        name: {} if kind is bytes else {"schema": schemas.of(kind)}
        for name, kind in content.items()
        if kind is not None
    }


def _response(
    description: str, headers: Iterable[Header], content: Document, schemas: _Schemas
) -> Document:
    response: Document = {
        "description": description,
        "headers": {one.name: _header(one, schemas) for one in (REVISION_HEADER, *headers)},
    }
    if content:
        response["content"] = content
    return response


def _error(route: Route, status: HTTPStatus, kinds: Iterable[type[KvactorError]]) -> Document:
    if not has_problems(route.path):
        return {JSON: {"schema": {"$ref": _REFERENCE.format(name=SimpleError.__name__)}}}
    this = {
        "status": {"const": int(status)},
        "code": {"enum": [code for code, _ in _codes(status, kinds)]},
    }
    schema = {"$ref": _REFERENCE.format(name=Problem.__name__), "properties": this}
    return {PROBLEM_JSON: {"schema": schema}}


def _meaning(status: HTTPStatus, kinds: Iterable[type[KvactorError]]) -> str:
    return "\n".join(f"- `{code}` {meaning}" for code, meaning in _codes(status, kinds))


def _codes(status: HTTPStatus, kinds: Iterable[type[KvactorError]]) -> Iterator[tuple[str, str]]:
    for kind in kinds:
        text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
        yield kind.code, text.removeprefix("Is raised ")
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        yield INTERNAL_ERROR, "when the server has a bug."
