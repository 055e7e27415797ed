"""REINFORCE: the policy gradient itself (Williams, 1992)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlft.losses.aggregate import masked
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class Reinforce:
    """`-A logp` of each decision: no ratio and no clip, so it fits one update per batch.

    In a second update the data are off-policy and nothing says so; use a loss with a ratio there.
    """

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        """`[B, T]`, 0 with zero gradient where masked."""
        return -masked("adv", batch.adv, batch.mask) * masked("logp", out.logp, batch.mask)
