"""Maximum likelihood of the actions in the batch: supervised fine-tuning, rejection sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlft.losses.aggregate import masked
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class NegativeLogLikelihood:
    """`-logp` of each decision: nats `[B, T]`, 0 with zero gradient where masked.

    Every row counts, whoever chose its actions, and the advantage is not read: filter rows and mask
    prompts before. Raises ValueError: `logp` and the mask differ in shape.
    """

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        return -masked("logp", out.logp, batch.mask)
