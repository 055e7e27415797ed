"""Transfer from curves of success: what a start was worth to a task, and what training took from another.

Pure. Forward transfer is that of Continual World (arXiv 2105.10919, section 4.3), as arXiv 2402.02868 uses
it; backward transfer that of GEM (arXiv 1706.08840), for one task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def area(steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> float:
    """The mean height of a curve over its steps, by trapezia: in [0, 1] of a success.

    Raises ValueError: other lengths, no point, or steps that do not rise.
    """
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if len(x) != len(y) or not len(x) or (np.diff(x) <= 0).any():
        raise ValueError(f"expected as many values as rising steps, got {len(y)} and {x.tolist()}")
    if len(x) == 1:
        return float(y[0])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def forward_transfer(found: float, scratch: float) -> float:
    """`(AUC - AUC_b) / (1 - AUC_b)` of two areas in [0, 1]; scratch: AUC_b, of training from nothing.

    1: the task was solved from the first step on; below 0: the start did harm. NaN where scratch leaves
    nothing to gain.
    """
    return (found - scratch) / (1 - scratch) if scratch < 1 else float("nan")


def backward_transfer(before: float, after: float) -> float:
    """What training changed in the success at what was known before: below 0 is forgetting."""
    return after - before
