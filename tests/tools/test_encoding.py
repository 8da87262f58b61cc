"""An answer to something else is found, and is no error of the client's own."""

import pytest

from kvactor.tools.stress.client import Answer
from kvactor.tools.stress.history import Step
from kvactor.tools.stress.wire import WIRE, batched

SCAN = Step("scan", "a", ["b", 10, False])
GET = Step("get", "a")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"status":404}', b'{"items":[{"key":"a"}]}', b'{"items":7}']
)
def test_what_is_no_answer_to_what_was_asked_is_said_to_be_none(body: bytes) -> None:
    answer = Answer(200, 1, 0, body, False)
    with pytest.raises(ValueError, match=r"the answer 200 .* is none to what was asked"):
        WIRE["scan"].result(answer)
    with pytest.raises(ValueError, match="is none to what was asked"):
        batched([GET], answer)


def test_a_batch_with_fewer_results_than_steps_is_no_answer() -> None:
    with pytest.raises(ValueError, match="is shorter than"):
        batched([GET, SCAN], Answer(200, 1, 0, b'{"results":[null]}', False))
