"""The one quantile of the tools."""

import math

import pytest

from kvactor.tools.quantiles import quantile, shown


@pytest.mark.parametrize(
    ("share", "value"), [(0, 1), (0.001, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.999, 100), (1, 100)]
)
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, value: int) -> None:
    assert quantile(range(100, 0, -1), share) == value
    assert quantile([7.0], share) == 7.0


def test_without_values_there_is_no_quantile_and_a_dash_is_shown() -> None:
    assert math.isnan(quantile([], 0.5))
    assert (shown(quantile([], 0.5), ".2f"), shown(1.005, ".1f")) == ("-", "1.0")
