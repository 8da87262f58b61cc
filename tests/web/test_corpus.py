"""The wire stays as it is: every answer in the corpus comes again, byte for byte.

The corpus knows nothing of what is inside the server, so it stays as it is whatever changes there.
Where the wire is to change, `python -m tests.web.corpus --record` writes down what the server says
now, and the difference is to be read before it is committed.
"""

import json
import re
from pathlib import Path

import pytest

from tests.web.corpus import ROOT, SCRIPTS, difference

#: What no script has a server say: it takes a race, a fault, a stop, or a fold that has come so far.
#: The simple routes answer two without a code, and 417 is aiohttp's own answer, which has none.
UNHEARD = {
    "history_gone",
    "internal_error",
    "key_and_value_required",
    "no_transaction",
    "outcome_unknown",
    "overloaded",
    "record_damaged",
    "request_too_expensive",
    "stopping",
    "writes_stalled",
}


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_recorded_exchange_gets_the_same_response_byte_for_byte(path: Path) -> None:
    text = difference(path)
    assert not text, f"{path.name}\n{text}"


def recorded() -> str:
    return "\n\n".join(path.read_text("ascii") for path in SCRIPTS)


def test_every_method_of_every_route_is_asked_and_answered() -> None:
    description = (Path(SCRIPTS[0].parent) / "openapi.txt").read_text("ascii")
    body = "\n".join(line[2:] for line in description.splitlines() if line.startswith("< "))
    paths = json.loads(body[body.index("\n{") :].replace("\\\\", "\\"))["paths"]
    text = recorded()
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(routes) > 20
    unasked = []
    for method, path in routes:
        target = path.replace("{key}", "[^ ?]+").replace("{id}", "[^ /]+")
        good = rf"^> {method} {target}(\?\S*)? HTTP/1\.1\n(>.*\n)*< HTTP/1\.1 [23]"
        if not re.search(good, text, re.MULTILINE):
            unasked.append((method, path))
    assert unasked == []


def test_every_documented_error_is_recorded() -> None:
    table = (ROOT / "docs" / "api.md").read_text().partition("\n## Errors\n")[2]
    codes = re.findall(r"^\| `(\w+)` \| \d+ \|", table, re.MULTILINE)
    assert len(codes) > 30
    assert {code for code in codes if f'"code":"{code}"' not in recorded()} == UNHEARD
