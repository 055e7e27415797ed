"""Corrections that accept or reject: 1 where engine and learner agree well enough, else 0.

As the corrections of `rlft.losses.correction`, and of the same signature; they may be combined with
one of those. Source: verl's rollout rejection. Departure: a rejected token keeps its place in the
denominator and in other terms (verl takes it out of the mask), since the mask is fixed before the
policy is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlft.losses.aggregate import row_mean
from rlft.losses.correction import Windowed, ratio_of, window


@dataclass(frozen=True, slots=True)
class TokenReject(Windowed):
    """1 for a token with `low <= rho_t <= high`, else 0. low in [0, 1], high at least 1."""

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return _accepted(ratio_of(gap_BT), self.low, self.high)


@dataclass(frozen=True, slots=True)
class SequenceReject(Windowed):
    """1 for the tokens of a row with `low <= prod_t rho_t <= high`, else 0. Bounds as TokenReject."""

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return _accepted(ratio_of(gap_BT.sum(1, keepdim=True)), self.low, self.high)


@dataclass(frozen=True, slots=True)
class GeometricReject(Windowed):
    """1 for the tokens of a row whose geometric mean of rho_t lies in [low, high], else 0.

    Does not depend on the length of the row; the usual window is therefore narrow.
    """

    low: float = 0.999
    high: float = 1.001

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return _accepted(ratio_of(row_mean(gap_BT, mask))[:, None], self.low, self.high)


def _accepted(rho: torch.Tensor, low: float, high: float) -> torch.Tensor:
    # rho / rho: 1, but NaN for a NaN, which must reach the learner.
    return window(rho, low, high) / rho
