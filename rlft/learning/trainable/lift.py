"""LIFT (arXiv 2506.00772): the weights that matter most after a rank reduction, and no others.

Of each matrix W of the layers (not of embeddings and head) those elements whose size in W_r, the best
approximation of rank r, is in the top share. Moments are kept for them alone; when the choice is made
anew, an element that stays keeps its moments and one that is new begins without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.errors import ConfigError
from rlft.learning.trained_part import Seen, Trainable, is_layer_matrix, largest


@dataclass(frozen=True)
class Lift(Trainable):
    """rank: r; share: of a matrix's elements; every: optimizer steps between choices, 0: once."""

    rank: int = 128
    share: float = 0.05
    every: int = 100
    chooses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.share <= 1 or self.every < 0:
            raise ConfigError(
                f"rank {self.rank}, share {self.share}, every {self.every}: expected rank >= 1, "
                f"0 < share <= 1, every >= 0"
            )

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def kept(self, name: str, seen: Seen) -> torch.Tensor | bool:
        if not is_layer_matrix(name, seen.shapes[name]):
            return False
        weight = seen.weight()
        if self.rank < min(weight.shape):
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            weight = (u[:, : self.rank] * s[: self.rank]) @ vh[: self.rank]
        return largest(weight.abs(), self.share)
