"""What fine-tuning changed, carried over to a new base (arXiv 2503.20110): θnew + a (θtuned − θbase)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.merging.method import Method, Place, Versions


@dataclass(frozen=True)
class Transfer(Method):
    """scale: how much of the change; 0 is the new base exactly."""

    scale: float = 1.0
    takes: ClassVar[tuple[str, ...]] = ("base", "onto")
    models: ClassVar[tuple[int, int | None]] = (1, 1)
    swept: ClassVar[str | None] = "scale"

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        change = of[2].sub_(of[0])
        return of[1].add_(change, alpha=self.scale)
