"""Spherical interpolation of two models, per tensor: on the arc between them, not on the chord.

sin((1−t)Ω)/sin(Ω) · a + sin(tΩ)/sin(Ω) · b, with Ω the angle between the flattened tensors (Shoemake
1985). Between tensors of one length the length stays. Where they are parallel to within 1e-3 rad the arc
is the chord, and where they oppose it is not defined: there the line is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.merging.method import Method, Place, Versions

_PARALLEL = 1e-3


@dataclass(frozen=True)
class Slerp(Method):
    """t: 0 is the first model, 1 the second, both exactly."""

    t: float = 0.5
    takes: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[tuple[int, int | None]] = (2, 2)
    swept: ClassVar[str | None] = "t"

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        first, second = of
        norms = [float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (first, second)]
        if not all(norms):
            return torch.lerp(first, second, self.t)
        dot = float(torch.sum(first * second, dtype=torch.float64)) / (norms[0] * norms[1])
        angle = math.acos(min(max(dot, -1.0), 1.0))
        if math.sin(angle) < _PARALLEL:
            return torch.lerp(first, second, self.t)
        shares = [math.sin(w * angle) / math.sin(angle) for w in (1 - self.t, self.t)]
        return first.mul_(shares[0]).add_(second, alpha=shares[1])
