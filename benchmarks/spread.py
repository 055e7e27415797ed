"""A cell of a table over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`mean [least, largest]`; empty where there is no value, or one is not a number."""
    if not values or any(map(math.isnan, values)):
        return ""
    mean, low, high = (f"{x:.{digits}f}" for x in (fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]"
