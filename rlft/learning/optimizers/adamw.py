"""AdamW (Loshchilov & Hutter 2019), with `learner.betas`, `eps` and `weight_decay`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rlft.learning.trained_part import Optimizing


@dataclass(frozen=True)
class AdamW(Optimizing):
    """Has no key of its own."""

    def made(self, named: Mapping[str, torch.nn.Parameter], settings: Any) -> torch.optim.Optimizer:
        keys: dict[str, Any] = {
            "lr": 0.0,  # set before each step, from the schedule
            "betas": settings.betas,
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
            "fused": True,  # one pass over memory in place of ten
        }
        return torch.optim.AdamW(list(named.values()), **keys)
