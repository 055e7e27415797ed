"""Staying near weights: a quadratic penalty, plain or weighted by a diagonal Fisher.

Pure functions of tensors of one shape, such as the shard of a parameter that a rank holds: both are
sums over weights, so shards add up. Source: elastic weight consolidation (arXiv 1612.00796, equation
3), in the form of arXiv 2402.02868: `c sum_i F_i (theta_i - theta*_i)^2`, without the half.
"""

from __future__ import annotations

import torch


def penalty(
    theta: torch.Tensor, anchor: torch.Tensor, fisher: torch.Tensor | None = None
) -> torch.Tensor:
    """`sum_i F_i (theta_i - theta*_i)^2`, a number; fisher: None for `F = 1`, which is L2 to the start."""
    squares = (theta - anchor) ** 2
    return squares.sum() if fisher is None else (fisher * squares).sum()


def pull(
    theta: torch.Tensor,
    anchor: torch.Tensor,
    fisher: torch.Tensor | None = None,
    coef: float = 1.0,
) -> torch.Tensor:
    """The gradient of `coef * penalty` in theta: `2 coef F (theta - theta*)`, of theta's shape."""
    gap = theta - anchor
    return 2 * coef * (gap if fisher is None else fisher * gap)
