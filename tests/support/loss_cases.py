"""Batches for the oracles of losses, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from rlft.losses import decision_weight
from rlft.types import Batch, PolicyOut

ROWS, LENGTHS, WIDTH = 5, (4, 1, 6, 3, 2), 6


def case(seed: int = 0) -> tuple[PolicyOut, Batch]:
    """Five ragged rows in float64, large ratios, the last row injected; NaN where masked."""
    rng = np.random.default_rng(seed)
    mask = torch.tensor([[t < n for t in range(WIDTH)] for n in LENGTHS])

    def draw(mean: float, spread: float) -> torch.Tensor:
        x = torch.tensor(rng.normal(mean, spread, (ROWS, WIDTH)))
        return x.masked_fill(~mask, math.nan)

    logp, old_logp, sample_logp, ref_logp = draw(-2, 0.4), draw(-2, 0.3), draw(-2, 0.3), draw(-2, 1)
    sample_logp[-1] = math.nan
    adv = torch.tensor(rng.normal(0, 2, (ROWS, 1))).expand(ROWS, WIDTH).clone()
    on_policy = torch.tensor([True] * (ROWS - 1) + [False])
    weight = decision_weight(mask, "token")
    batch = Batch(mask, weight, adv, sample_logp, old_logp, on_policy, ref_logp)
    return PolicyOut(logp.requires_grad_(), torch.zeros_like(logp)), batch


def decisions() -> list[tuple[int, int]]:
    return [(b, t) for b in range(ROWS) for t in range(LENGTHS[b])]


def finite_differences(f: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """Central differences, one entry at a time; 0 at entries that are NaN (masked)."""
    gradient = np.zeros_like(x)
    for index in np.argwhere(~np.isnan(x)):
        at = tuple(index)
        up, down = x.copy(), x.copy()
        up[at] += 1e-6
        down[at] -= 1e-6
        gradient[at] = (f(up) - f(down)) / 2e-6
    return gradient
