"""LiNeS (arXiv 2410.17146): the task vector scaled up with depth, θ0 + (α + β (ℓ−1)/(L−1)) (θ1 − θ0).

Shallow layers, which hold what is general, stay near the base; deep ones keep what was learnt. The
defaults are a choice of ours (α = 0, β = 1): the base's first layer, the tuned model's last.
Embeddings count as the first layer; the output head and what else follows the layers as the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.merging.method import Method, Place, Versions


@dataclass(frozen=True)
class Lines(Method):
    """alpha: the share of the task vector in the first layer; alpha + beta: in the last."""

    alpha: float = 0.0
    beta: float = 1.0
    takes: ClassVar[tuple[str, ...]] = ("base",)
    models: ClassVar[tuple[int, int | None]] = (1, 1)
    swept: ClassVar[str | None] = "alpha"

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        base, tuned = of
        return torch.lerp(base, tuned, self.alpha + self.beta * place.depth)
