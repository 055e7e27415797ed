"""GMPO: the geometric mean of clipped token ratios (arXiv 2507.20673)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.losses.aggregate import Aggregation, masked, row_mean
from rlft.losses.correction import MAX_LOG_RATIO, require_range
from rlft.losses.surrogate import diagnostics, log_ratio
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class GMPO:
    """`-A (prod_t c_t)^(1/T)` of each row, `c_t` the token's ratio, clipped on the side that A pushes.

    clip_low, clip_high: bounds of the *log* ratio, at least 0: a ratio is clipped to
    [exp(-clip_low), exp(clip_high)]; for A > 0 only from above, for A < 0 only from below, and a
    clipped token has no gradient. A is the mean of the row's advantage. Averaged over rows:
    `aggregate: sequence` is what it asks for.

    Source: equation 4, with its clip range (e^-0.4, e^0.4); taken in logarithms, as in verl's
    `geo_mean`. Departures: no KL term; the log ratio is clamped to plus or minus 20.
    """

    aggregate: ClassVar[Aggregation] = "sequence"

    clip_low: float = 0.4
    clip_high: float = 0.4

    def __post_init__(self) -> None:
        require_range("clip_low", self.clip_low, 0, math.inf)
        require_range("clip_high", self.clip_high, 0, math.inf)

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B]`, 0 for a row without decisions; diagnostics `clip_fraction` and `ratio`."""
        adv_B = row_mean(masked("adv", batch.adv, batch.mask), batch.mask)
        log_BT = log_ratio(out, batch).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        bounded_BT = torch.where(
            adv_B[:, None] > 0, log_BT.clamp(max=self.clip_high), log_BT.clamp(min=-self.clip_low)
        )
        loss_B = -adv_B * row_mean(bounded_BT, batch.mask).exp()
        return loss_B, diagnostics(bounded_BT != log_BT, log_BT.exp(), batch.mask)
