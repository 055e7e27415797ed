"""An exponential moving average over checkpoints, the oldest first: m ← decay · m + (1 − decay) · θ.

It starts from the oldest. Given a run folder, its checkpoints are taken in order of their steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.errors import ConfigError
from rlft.merging.method import Method, Place, Versions


@dataclass(frozen=True)
class Ema(Method):
    """decay: what is kept of the average at each checkpoint; 0 is the newest, 1 the oldest."""

    decay: float = 0.5
    takes: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[tuple[int, int | None]] = (1, None)
    swept: ClassVar[str | None] = "decay"
    whole_runs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay is {self.decay}, expected 0 to 1")

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        mean = of[0]
        for index in range(1, len(of)):
            mean.lerp_(of[index], 1 - self.decay)
        return mean
