"""AdamW (Loshchilov & Hutter 2019), with `learner.betas`, `eps` and `weight_decay`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rlft.learning.adamw import adamw
from rlft.learning.trained_part import Optimizing


@dataclass(frozen=True)
class AdamW(Optimizing):
    """Has no key of its own."""

    def made(self, named: Mapping[str, torch.nn.Parameter], settings: Any) -> torch.optim.Optimizer:
        return adamw(list(named.values()), settings)
