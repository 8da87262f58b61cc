"""A response that does not fit its request raises `ValueError`, whatever its form."""

import pytest
from multidict import CIMultiDict

from kvactor.tools.http import Response
from kvactor.tools.stress.encoding import V1, batched
from kvactor.tools.stress.history import Step

SCAN = Step("scan", "a", ["b", 10, False])
GET = Step("get", "a")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"status":404}', b'{"items":[{"key":"a"}]}', b'{"items":7}']
)
def test_a_response_of_another_form_is_refused(body: bytes) -> None:
    response = Response(200, CIMultiDict(), body)
    with pytest.raises(ValueError, match=r"the response 200 .* does not fit its request"):
        V1["scan"].result(response)
    with pytest.raises(ValueError, match="does not fit its request"):
        batched([GET], response)


def test_a_batch_response_with_fewer_results_than_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="is shorter than"):
        batched([GET, SCAN], Response(200, CIMultiDict(), b'{"results":[null]}'))
