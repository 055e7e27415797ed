"""The largest elements of each matrix of the layers, by the size of the weight or of its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from rlft.errors import ConfigError
from rlft.learning.trained_part import Seen, Trainable, is_layer_matrix, largest


@dataclass(frozen=True)
class TopK(Trainable):
    """by: what is compared, the gradient being that of the step that chooses; share: of a matrix's
    elements; every: optimizer steps between choices, 0: once."""

    by: Literal["magnitude", "gradient"] = "magnitude"
    share: float = 0.05
    every: int = 0
    chooses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.every < 0:
            raise ConfigError(
                f"share {self.share}, every {self.every}: expected 0 < share <= 1, every >= 0"
            )

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def kept(self, name: str, seen: Seen) -> torch.Tensor | bool:
        if not is_layer_matrix(name, seen.shapes[name]):
            return False
        whole = seen.weight() if self.by == "magnitude" else seen.grad()
        return largest(whole.abs(), self.share)
