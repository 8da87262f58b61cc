"""Are the answers of the two servers comparable? Asked before anything is measured.

A ratio says something only if both servers send the same thing: status, header names and content
type must be equal; so must the body, but for its numbers and for what its strings say: revisions,
ids, times.
"""

from collections.abc import Iterator

import msgspec

from kvactor.tools.bench.servers import BenchError
from kvactor.tools.bench.workloads import WORKLOADS, Script, transaction
from kvactor.tools.connections import Connection
from kvactor.tools.http import Response

SUCCESS = range(200, 300)


class Answer(msgspec.Struct, frozen=True):
    """What must be equal."""

    status: int
    headers: list[str]
    content_type: str
    body: object


def check_same(host: str, other: str) -> None:
    """Ask both servers for one answer of each kind. Raises BenchError where they differ."""
    for (request, mine), (_, theirs) in zip(_answers(host), _answers(other), strict=True):
        if mine != theirs or mine.status not in SUCCESS:
            raise BenchError(f"the answers to {request} are not comparable:\n  {mine}\n  {theirs}")


def _answers(host: str) -> Iterator[tuple[str, Answer]]:
    address, port = host.split(":")
    with Connection(address, int(port)) as connection:
        script = _probe(host)
        request = next(script)
        try:
            while True:
                connection.send_raw(request)
                response = connection.receive()
                yield request.partition(b" HTTP/")[0].decode(), _answer(response)
                request = script.send(response.body if response.ok else None)
        except StopIteration:
            return


def _probe(host: str) -> Script:
    for kind in dict.fromkeys(kind for each in WORKLOADS.values() for _, kind in each.requests):
        yield kind.raw(host, *range(kind.numbers))
    yield from transaction(host, 0)


def _answer(response: Response) -> Answer:
    return Answer(
        response.status,
        sorted(name.lower() for name in response.headers),
        response.headers.get("Content-Type", ""),
        _shape(response.json()),
    )


def _shape(value: object) -> object:
    """Return a JSON value with zeros for numbers, and for strings their lengths."""
    if isinstance(value, dict):
        return {name: _shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    return len(value) if isinstance(value, str) else 0
