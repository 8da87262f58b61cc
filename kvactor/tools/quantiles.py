"""The one quantile of the tools."""

import math
from collections.abc import Iterable


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that such a share of all values does not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def shown(value: float, form: str) -> str:
    """Return a value in a format; a dash for NaN."""
    return "-" if math.isnan(value) else format(value, form)
