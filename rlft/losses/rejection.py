"""Corrections that accept or reject: 1 where engine and learner agree well enough, else 0.

As the corrections of `rlft.losses.correction`, and of the same signature; they may be combined with
one of those. Source: verl's rollout rejection. Departure: a rejected token keeps its place in the
denominator and in other terms (verl takes it out of the mask), since the mask is fixed before the
policy is evaluated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rlft.losses.aggregate import masked, row_mean
from rlft.losses.correction import log_gap, ratio_of, require_range, window


@dataclass(frozen=True, slots=True)
class TokenReject:
    """1 for a token with `low <= rho_t <= high`, else 0. low in [0, 1], high at least 1."""

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        require_range("low", self.low, 0, 1)
        require_range("high", self.high, 1, math.inf)

    def __call__(
        self,
        old_logp: torch.Tensor,
        sample_logp: torch.Tensor,
        mask: torch.Tensor,
        on_policy: torch.Tensor,
    ) -> torch.Tensor:
        rho_BT = ratio_of(log_gap(old_logp, sample_logp, mask, on_policy))
        return masked("weight", _accepted(rho_BT, self.low, self.high), mask)


@dataclass(frozen=True, slots=True)
class SequenceReject:
    """1 for the tokens of a row with `low <= prod_t rho_t <= high`, else 0. Bounds as TokenReject."""

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        require_range("low", self.low, 0, 1)
        require_range("high", self.high, 1, math.inf)

    def __call__(
        self,
        old_logp: torch.Tensor,
        sample_logp: torch.Tensor,
        mask: torch.Tensor,
        on_policy: torch.Tensor,
    ) -> torch.Tensor:
        gap_BT = log_gap(old_logp, sample_logp, mask, on_policy)
        weight_B = _accepted(ratio_of(gap_BT.sum(1)), self.low, self.high)
        return masked("weight", weight_B[:, None].expand_as(gap_BT), mask)


@dataclass(frozen=True, slots=True)
class GeometricReject:
    """1 for the tokens of a row whose geometric mean of rho_t lies in [low, high], else 0.

    Does not depend on the length of the row; the usual window is therefore narrow.
    """

    low: float = 0.999
    high: float = 1.001

    def __post_init__(self) -> None:
        require_range("low", self.low, 0, 1)
        require_range("high", self.high, 1, math.inf)

    def __call__(
        self,
        old_logp: torch.Tensor,
        sample_logp: torch.Tensor,
        mask: torch.Tensor,
        on_policy: torch.Tensor,
    ) -> torch.Tensor:
        gap_BT = log_gap(old_logp, sample_logp, mask, on_policy)
        weight_B = _accepted(ratio_of(row_mean(gap_BT, mask)), self.low, self.high)
        return masked("weight", weight_B[:, None].expand_as(gap_BT), mask)


def _accepted(rho: torch.Tensor, low: float, high: float) -> torch.Tensor:
    # rho / rho: 1, but NaN for a NaN, which must reach the learner.
    return window(rho, low, high) / rho
