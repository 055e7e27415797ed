"""DPPO: a trust region in probabilities instead of ratios (arXiv 2602.04879)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from rlft.errors import ConfigError, did_you_mean
from rlft.losses.aggregate import masked
from rlft.losses.correction import MAX_LOG_RATIO, require_range
from rlft.losses.surrogate import diagnostics, log_ratio
from rlft.types import Batch, PolicyOut

Divergence = Literal["tv", "kl"]


@dataclass(frozen=True, slots=True)
class DPPO:
    """`-min(w, cap) A logp`, weight without gradient; 0 for a token that has moved too far already.

    Too far: the divergence between "this token or not" under the old and the new policy is above
    clip_high for a token that A > 0 would make likelier and that is likelier already, or above
    clip_low for one that A < 0 would make, and is, less likely. divergence: `tv`, |p - q| (then the
    paper uses bounds of about 0.2), or `kl`, KL(old || new) of the two-valued distributions (0.05).
    So a rare token may multiply its probability and a common one may not. cap: at least 1.

    Source: equations 12 and 14; the weight's cap from verl. Departures: the anchor is the
    learner's log-prob at the start of the fit, while the paper takes the engine's (the gap between
    the two is the correction's business); a decision with A = 0 has no loss anyway.
    """

    divergence: Divergence = "tv"
    clip_low: float = 0.2
    clip_high: float = 0.2
    cap: float = 20.0

    def __post_init__(self) -> None:
        choices = get_args(Divergence)
        if self.divergence not in choices:
            raise ConfigError(
                f"divergence must be one of {', '.join(choices)}; got {self.divergence!r}."
                f"{did_you_mean(str(self.divergence), choices)}"
            )
        require_range("clip_low", self.clip_low, 0, math.inf)
        require_range("clip_high", self.clip_high, 0, math.inf)
        require_range("cap", self.cap, 1, math.inf)

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B, T]`, 0 where masked; diagnostics: `clip_fraction`, dropped tokens, and `ratio`."""
        adv_BT = masked("adv", batch.adv, batch.mask)
        logp_BT = masked("logp", out.logp, batch.mask)
        old_BT = masked("old_logp", batch.old_logp, batch.mask).detach()
        log_BT = log_ratio(out, batch).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        far_BT = self._divergence(old_BT.exp(), logp_BT.detach().exp())
        up_BT = (adv_BT > 0) & (log_BT > 0) & (far_BT > self.clip_high)
        down_BT = (adv_BT < 0) & (log_BT < 0) & (far_BT > self.clip_low)
        dropped_BT = up_BT | down_BT
        weight_BT = log_BT.exp().clamp(max=self.cap) * ~dropped_BT
        return -weight_BT * adv_BT * logp_BT, diagnostics(dropped_BT, log_BT.exp(), batch.mask)

    def _divergence(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if self.divergence == "tv":
            return (new - old).abs()
        # Probabilities of exactly 0 and 1 have an infinite divergence; kept just inside.
        tiny = torch.finfo(old.dtype).eps
        p, q = old.clamp(tiny, 1 - tiny), new.clamp(tiny, 1 - tiny)
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
