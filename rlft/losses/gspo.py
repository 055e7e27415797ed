"""GSPO: the clipped surrogate with one ratio a sequence (arXiv 2507.18071)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.losses.aggregate import Aggregation, masked, row_mean
from rlft.losses.correction import ratio_of, require_range
from rlft.losses.surrogate import diagnostics, log_ratio
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class GSPO:
    """`-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)` of each row, `s = exp(mean log ratio)`.

    clip_low in [0, 1], clip_high at least 0: the paper's are far smaller than PPO's, since `s` is a
    mean over tokens. A is the mean of the row's advantage. Averaged over rows: `aggregate: sequence`
    is what it asks for; with `token` it is LUSPO (arXiv 2602.05261), where a row counts by its length.

    Source: equation 5 (objective) and 7 (ratio). Departures: no KL term; the log ratio is clamped
    to plus or minus 20.
    """

    aggregate: ClassVar[Aggregation] = "sequence"

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        require_range("clip_low", self.clip_low, 0, 1)
        require_range("clip_high", self.clip_high, 0, math.inf)

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B]`, 0 for a row without decisions; diagnostics `clip_fraction` and `ratio`."""
        adv_B = row_mean(masked("adv", batch.adv, batch.mask), batch.mask)
        ratio_B = ratio_of(row_mean(log_ratio(out, batch), batch.mask))
        plain_B = -adv_B * ratio_B
        clipped_B = -adv_B * ratio_B.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_B = torch.maximum(plain_B, clipped_B)
        return loss_B, diagnostics(loss_B != plain_B, ratio_B, batch.mask)
