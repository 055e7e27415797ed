"""Entropy as something to be had: subtracted from the objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlft.losses.aggregate import masked
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class EntropyBonus:
    """`-H(pi(.|s))` of each decision, nats `[B, T]`, 0 with zero gradient where masked.

    Source: A3C (arXiv 1602.01783, section 4); PPO (arXiv 1707.06347, equation 9). A language model's
    entropy has no gradient here: for policies of environments.
    """

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        return -masked("entropy", out.entropy, batch.mask)
