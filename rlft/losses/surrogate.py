"""The clipped surrogate of PPO, as GRPO, Dr. GRPO, DAPO and RLOO use it.

One loss for all of them: they differ in the advantage (`rlft.credit`), the aggregation
(`aggregate`) and the clip range (DAPO: 0.2 below, 0.28 above). Left out: sequence-level ratios
(GSPO), clipped weights (CISPO) and soft gates (SAPO).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from rlft.errors import ConfigError
from rlft.losses.aggregate import masked
from rlft.losses.correction import MAX_LOG_RATIO, Correction, TokenTruncate, require_range
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class ClippedSurrogate:
    """`-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)` with `w = exp(logp - old_logp)`.

    clip_low: in [0, 1]; clip_high: at least 0, infinite for no upper clip. dual_clip: above 1, or
    None; where A < 0 the loss is at most `-A dual_clip` (arXiv 1912.09729; verl uses 3).
    correction: weight for the gap between engine and learner, or None (then `sample_logp` is not
    read). It multiplies the clipped loss and carries no gradient.

    Sources: PPO (arXiv 1707.06347, equation 7), GRPO (arXiv 2402.03300, equation 3), clip-higher
    from DAPO (arXiv 2503.14476, section 3.1). Departures: the KL penalty of GRPO is a term of its
    own (`KLToReference`), so the correction does not touch it; the log ratio is clamped to
    plus or minus 20, beyond which a decision has no gradient. With one update per batch `old_logp`
    is `logp` without gradient: `w` is 1 and the gradient is that of REINFORCE.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    correction: Correction | None = field(default=TokenTruncate(2.0))

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
        if self.correction is not None and not callable(self.correction):
            raise ConfigError(
                f"correction must be None or one of TokenTruncate, TokenMask, SequenceTruncate, "
                f"SequenceMask (or your own Correction), got {self.correction!r}."
            )

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B, T]`, 0 with zero gradient where masked, and diagnostics `[B, T]`, 0 there too.

        Diagnostics: `clip_fraction`, 1 where either clip holds (the decision has no gradient);
        `ratio`, w; `is_weight`, the correction. Raises ValueError: a field of another shape.
        """
        mask_BT = batch.mask
        adv_BT = masked("adv", batch.adv, mask_BT)
        old_BT = masked("old_logp", batch.old_logp, mask_BT)
        log_ratio_BT = masked("logp", out.logp, mask_BT) - old_BT.detach()
        ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        plain_BT = -adv_BT * ratio_BT
        clipped_BT = -adv_BT * ratio_BT.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_BT = torch.maximum(plain_BT, clipped_BT)
        if self.dual_clip is not None:
            bounded_BT = torch.minimum(loss_BT, -adv_BT * self.dual_clip)
            loss_BT = torch.where(adv_BT < 0, bounded_BT, loss_BT)
        held_BT = (loss_BT != plain_BT).detach()
        weight_BT = self._weight(batch)
        return loss_BT * weight_BT, {
            "clip_fraction": masked("clip_fraction", held_BT.to(loss_BT.dtype), mask_BT),
            "ratio": masked("ratio", ratio_BT.detach(), mask_BT),
            "is_weight": weight_BT,
        }

    def _weight(self, batch: Batch) -> torch.Tensor:
        if self.correction is None:
            return batch.mask.to(batch.old_logp.dtype)
        return self.correction(batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
