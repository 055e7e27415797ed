"""WiSE-FT (arXiv 2109.01903): on the line from the base to the tuned model, θ0 + α (θ1 − θ0).

The paper recommends α = 0.5 where no target is at hand to choose it by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.merging.method import Method, Place, Versions


@dataclass(frozen=True)
class WiseFt(Method):
    """alpha: 0 is the base, 1 the tuned model, both exactly."""

    alpha: float = 0.5
    takes: ClassVar[tuple[str, ...]] = ("base",)
    models: ClassVar[tuple[int, int | None]] = (1, 1)
    swept: ClassVar[str | None] = "alpha"

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        base, tuned = of
        return torch.lerp(base, tuned, self.alpha)
