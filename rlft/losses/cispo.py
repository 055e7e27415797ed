"""CISPO: clipped importance weights in place of clipped gradients (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rlft.losses.aggregate import masked
from rlft.losses.correction import ratio_of, require_range
from rlft.losses.surrogate import diagnostics, log_ratio
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class CISPO:
    """`-clip(w, 1 - clip_low, 1 + clip_high) A logp`; the weight carries no gradient, so every token does.

    The bounds are around 1, as in the paper's equation 5 and in verl; TRL's `epsilon_high` is the
    bound itself. The defaults are TRL's and ScaleRL's (arXiv 2510.13786) in our terms: no lower
    bound, and a weight of at most 5. clip_low in [0, 1]; clip_high at least 0.

    Sources: MiniMax-M1, equations 4 and 5, with the mean over all tokens (`aggregate: token`).
    Departures: no KL term; the log ratio is clamped to plus or minus 20.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0

    def __post_init__(self) -> None:
        require_range("clip_low", self.clip_low, 0, 1)
        require_range("clip_high", self.clip_high, 0, math.inf)

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B, T]`, 0 where masked; diagnostics: `clip_fraction`, whose *weight* is held; `ratio`."""
        adv_BT = masked("adv", batch.adv, batch.mask)
        ratio_BT = ratio_of(log_ratio(out, batch)).detach()
        weight_BT = ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_BT = -weight_BT * adv_BT * masked("logp", out.logp, batch.mask)
        return loss_BT, diagnostics(weight_BT != ratio_BT, ratio_BT, batch.mask)
