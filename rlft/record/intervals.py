"""Bootstrap intervals of a mean over training seeds and configurations. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """value: the mean; low, high: the ends of the interval around it. Floats, or arrays `[K]`."""

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def interval(
    value_SC: np.ndarray, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `value [S, C]` or `[S, C, K]` over S training seeds and C configurations, and the ends of
    its percentile bootstrap interval.

    Seeds and configurations are both drawn anew, each with replacement and independently: the same C
    configurations are played under each seed, so neither is nested in the other (the pigeonhole
    bootstrap, Owen 2007, arXiv:0712.1111; it errs to the wide side). With one seed, or one configuration,
    that source of spread is not seen. To compare two policies, give the differences of their values:
    then they are paired by configuration.

    Raises ValueError for another shape, a value that is not finite, or a level outside (0, 1).
    """
    value_SC = np.asarray(value_SC, dtype=np.float64)
    if value_SC.ndim not in (2, 3) or 0 in value_SC.shape:
        raise ValueError(f"needs values [S, C] or [S, C, K], none of them 0, got {value_SC.shape}")
    if not np.isfinite(value_SC).all():
        raise ValueError("needs finite values; leave out what was not measured")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"needs 0 < level < 1 and at least one draw, got {level=} {draws=}")
    num_S, num_C = value_SC.shape[:2]
    rng = np.random.default_rng(seed)
    # A resample is how often each index was drawn: then its mean is a product with weights.
    seed_DS = rng.multinomial(num_S, np.full(num_S, 1 / num_S), size=draws) / num_S
    config_DC = rng.multinomial(num_C, np.full(num_C, 1 / num_C), size=draws) / num_C
    mean_D = np.einsum("ds,dc,sc...->d...", seed_DS, config_DC, value_SC, optimize=True)
    tail = (1 - level) / 2
    low, high = np.quantile(mean_D, [tail, 1 - tail], axis=0)
    mean = value_SC.mean(axis=(0, 1))
    if value_SC.ndim == 2:
        return Interval(float(mean), float(low), float(high))
    return Interval(mean, low, high)
