"""The clipped surrogate of PPO, as GRPO, Dr. GRPO, DAPO and RLOO use it.

One loss for all of them: they differ in the advantage (`rlft.credit`), the aggregation
(`aggregate`) and the clip range (DAPO: 0.2 below, 0.28 above).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rlft.errors import ConfigError
from rlft.losses.aggregate import masked, per_decision
from rlft.losses.correction import ratio_of, require_range
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class ClippedSurrogate:
    """`-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)` with `w = exp(logp - old_logp)`.

    clip_low: in [0, 1]; clip_high: at least 0, infinite for no upper clip. dual_clip: above 1, or
    None; where A < 0 the loss is at most `-A dual_clip` (arXiv 1912.09729; verl uses 3).

    Sources: PPO (arXiv 1707.06347, equation 7), GRPO (arXiv 2402.03300, equation 3), clip-higher
    from DAPO (arXiv 2503.14476, section 3.1). Departures: the KL penalty of GRPO is a term of its
    own (`KLToReference`), and the weight between engine and learner a wrapper (`Corrected`); the
    log ratio is clamped to plus or minus 20, beyond which a decision has no gradient. With one
    update per batch `old_logp` is `logp` without gradient: `w` is 1 and the gradient is that of
    REINFORCE.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        require_range("clip_low", self.clip_low, 0, 1)
        require_range("clip_high", self.clip_high, 0, math.inf)
        if self.dual_clip is not None:
            require_range("dual_clip", self.dual_clip, 1, math.inf)
            if self.dual_clip == 1 or self.dual_clip == math.inf:
                # At 1 an on-policy decision sits on the bound and loses half its gradient.
                raise ConfigError(
                    f"dual_clip must be above 1 and finite (verl uses 3), got {self.dual_clip}; "
                    f"use None for no such clip."
                )

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B, T]`, 0 with zero gradient where masked, and diagnostics `[B, T]`, 0 there too.

        Diagnostics: `clip_fraction`, 1 where either clip holds (the decision has no gradient);
        `ratio`, w. Raises ValueError: a field of another shape.
        """
        adv_BT = masked("adv", batch.adv, batch.mask)
        ratio_BT = ratio_of(log_ratio(out, batch))
        plain_BT = -adv_BT * ratio_BT
        clipped_BT = -adv_BT * ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_BT = torch.maximum(plain_BT, clipped_BT)
        if self.dual_clip is not None:
            bounded_BT = torch.minimum(loss_BT, -adv_BT * self.dual_clip)
            loss_BT = torch.where(adv_BT < 0, bounded_BT, loss_BT)
        return loss_BT, diagnostics(loss_BT != plain_BT, ratio_BT, batch.mask)


def log_ratio(out: PolicyOut, batch: Batch) -> torch.Tensor:
    """`logp - old_logp` `[B, T]`, nats, 0 with zero gradient where masked."""
    old_BT = masked("old_logp", batch.old_logp, batch.mask).detach()
    return masked("logp", out.logp, batch.mask) - old_BT


def diagnostics(
    held: torch.Tensor, ratio: torch.Tensor, mask_BT: torch.Tensor
) -> dict[str, torch.Tensor]:
    """`clip_fraction` and `ratio` `[B, T]`, without gradient and 0 where masked, of either kind."""
    pair = {"clip_fraction": held.to(ratio.dtype), "ratio": ratio}
    return {name: per_decision(name, x.detach(), mask_BT) for name, x in pair.items()}
