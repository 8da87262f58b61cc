"""Are the answers of the two servers comparable? Asked before anything is measured.

A ratio says something only if both servers send the same thing: status, header names and content
type must be equal; so must the body's bytes, or, where a body carries an id or a time, its names.
"""

import socket
from http.client import HTTPResponse

import msgspec

from bench.servers import BenchError
from bench.workloads import Requests, Script

STEPS = ("set", "get", "create", "transaction's get", "transaction's set", "commit")
VARYING = {"create", "commit"}
SUCCESS = range(200, 300)


class Answer(msgspec.Struct, frozen=True):
    """What must be equal."""

    status: int
    headers: list[str]
    content_type: str
    body: bytes | list[str]


def check_same(host: str, other: str) -> None:
    """Ask both servers for one answer of each kind. Raises BenchError where they differ."""
    for step, mine, theirs in zip(STEPS, _answers(host), _answers(other), strict=True):
        if mine != theirs or mine.status not in SUCCESS:
            raise BenchError(f"the answers to {step} are not comparable:\n  {mine}\n  {theirs}")


def _answers(host: str) -> list[Answer]:
    requests = Requests(host)
    address, port = host.split(":")
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        script = _probe(requests)
        request = next(script)
        answers: list[Answer] = []
        try:
            while True:
                connection.sendall(request)
                response = HTTPResponse(connection)
                response.begin()
                body = response.read()
                answers.append(_answer(STEPS[len(answers)], response, body))
                request = script.send(body if response.status in SUCCESS else None)
        except StopIteration:
            return answers


def _probe(requests: Requests) -> Script:
    yield requests.set(0)
    yield requests.get(0)
    yield from requests.transaction(0)


def _answer(step: str, response: HTTPResponse, body: bytes) -> Answer:
    names = response.status in SUCCESS and step in VARYING
    return Answer(
        response.status,
        sorted(name.lower() for name, _ in response.getheaders()),
        response.headers.get("Content-Type", ""),
        sorted(msgspec.json.decode(body, type=dict[str, object])) if names else body,
    )
