"""lo-fi (arXiv 2210.11948): the mean of models that were fine-tuned without talking to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.merging.method import Method, Place, Versions


@dataclass(frozen=True)
class LoFi(Method):
    """Has no setting: every model counts the same. One model is itself."""

    takes: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[tuple[int, int | None]] = (1, None)
    swept: ClassVar[str | None] = None

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        total = of[0]
        for index in range(1, len(of)):
            total.add_(of[index])
        return total.div_(len(of))
