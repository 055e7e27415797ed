"""Credit for sets of episodes: a set scores by what its members earn *and* how different they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from rlft.diversity import Traces, diversity_of
from rlft.errors import ConfigError

Baseline = Literal["mean", "loo"]


def polychromic(
    returns: Sequence[float],
    traces: Sequence[Traces],
    diversity: Callable[[Sequence[Traces]], float],
    rng: np.random.Generator,
    *,
    size: int = 4,
    sets: int = 4,
    baseline: Baseline = "mean",
) -> tuple[np.ndarray, np.ndarray]:
    """Advantage float64 `[N]` of each of N episodes from one state, NaN for one in no set; and the scores
    `[M]` of the sets.

    M different sets of `size` episodes are drawn, or all there are, if those are no more. A set scores
    `mean(return) x diversity`; an episode's advantage is the sum, over the sets it is in, of how far each
    is above the baseline: the mean of all M scores, or of the others (`loo`, unbiased for independent
    sets).

    returns: from the state on, in [0, 1]. Source: polychromic objectives (arXiv 2509.25424, equation 7,
    algorithm 2); the sum over sets is the marginal advantage of Poly-EPO (arXiv 2604.17654).
    Raises ConfigError: fewer episodes than `size`, a return outside [0, 1].
    """
    returned = _in_range(np.asarray(returns, np.float64))
    if len(returned) < size:
        raise ConfigError(
            f"{len(returned)} episodes from a state have no set of {size}; lower algo.set_size or raise "
            f"algo.vines"
        )
    chosen = _drawn(rng, len(returned), size, sets)
    score = np.array(
        [returned[g].mean() * diversity_of(diversity, [traces[i] for i in g]) for g in chosen]
    )
    base = np.full(len(score), score.mean())
    if baseline == "loo" and len(score) > 1:
        base = (score.sum() - score) / (len(score) - 1)
    adv = np.full(len(returned), np.nan)
    for g, above in zip(chosen, score - base, strict=True):
        adv[g] = np.nan_to_num(adv[g]) + above
    return adv, score


def _drawn(rng: np.random.Generator, num: int, size: int, sets: int) -> list[np.ndarray]:
    """Different sets of `size` of `num` members."""
    if math.comb(num, size) <= sets:
        return [np.array(one) for one in itertools.combinations(range(num), size)]
    found: dict[tuple[int, ...], np.ndarray] = {}
    while len(found) < sets:
        one = rng.permutation(num)[:size]
        found.setdefault(tuple(sorted(one.tolist())), one)
    return list(found.values())


def _in_range(returned: np.ndarray) -> np.ndarray:
    """Returns in [0, 1]; sums of float32 rewards miss it by their rounding."""
    within = np.clip(returned, 0, 1)
    if not (np.abs(returned - within) < 1e-5).all():
        raise ConfigError(
            f"polychromic advantages need returns in [0, 1], got {returned.min():.9g} to "
            f"{returned.max():.9g}; set algo.return_range to what this environment can give"
        )
    return within


def normalised(returns: Sequence[float], low: float, high: float) -> list[float]:
    """Returns as shares of what can be had. Raises ConfigError for an empty range."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"return_range must be two numbers, low < high, got [{low}, {high}]")
    return [(r - low) / (high - low) for r in returns]
