"""SAPO: a soft gate in place of the clip (arXiv 2511.20347)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.errors import ConfigError
from rlft.losses.aggregate import Aggregation, masked
from rlft.losses.correction import ratio_of, require_range
from rlft.losses.surrogate import log_ratio
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class SAPO:
    """`-(4 / tau) sigmoid(tau (w - 1)) A`: its slope in w is A at 1, and fades smoothly away from it.

    tau_pos, tau_neg: above 0, the temperature where A > 0 and where it is not; a larger one fades
    sooner. Averaged over rows of the mean over tokens: `aggregate: sequence` is what it asks for.

    Source: equations 5 and 6, with the paper's temperatures. Departures: no KL term; the log ratio is
    clamped to plus or minus 20.
    """

    aggregate: ClassVar[Aggregation] = "sequence"

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        for name, tau in (("tau_pos", self.tau_pos), ("tau_neg", self.tau_neg)):
            require_range(name, tau, 0, math.inf)
            if tau == 0 or tau == math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, got {tau}.")

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B, T]`, 0 where masked; diagnostics: `ratio`, and `gate`, the slope in w over A."""
        adv_BT = masked("adv", batch.adv, batch.mask)
        ratio_BT = ratio_of(log_ratio(out, batch))
        pos, neg = ratio_BT.new_tensor([self.tau_pos, self.tau_neg])
        tau_BT = torch.where(adv_BT > 0, pos, neg)
        soft_BT = torch.sigmoid(tau_BT * (ratio_BT - 1))
        gate_BT = (4 * soft_BT * (1 - soft_BT)).detach()
        return -(4 / tau_BT) * soft_BT * adv_BT, {
            "ratio": masked("ratio", ratio_BT.detach(), batch.mask),
            "gate": masked("gate", gate_BT, batch.mask),
        }
