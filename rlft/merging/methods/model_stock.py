"""Model Stock (arXiv 2403.19522): the mean of N tuned models, drawn to the base as far as they disagree.

t = N c / (1 + (N − 1) c), where c is the mean cosine between task vectors; the result is
t · mean(θi) + (1 − t) θ0. Here c is taken per tensor (in the paper per layer) and clamped to [0, 1].
All N versions of a tensor are in memory at a time: their angles are needed before their mean is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch

from rlft.merging.method import Method, Place, Versions


@dataclass(frozen=True)
class ModelStock(Method):
    """Has no setting: the angles say how far."""

    takes: ClassVar[tuple[str, ...]] = ("base",)
    models: ClassVar[tuple[int, int | None]] = (2, None)
    swept: ClassVar[str | None] = None

    def mixed(self, of: Versions, place: Place) -> torch.Tensor:
        base = of[0]
        tasks = [of[i].sub_(base) for i in range(1, len(of))]
        # base + t · mean(τ) is t · mean(θ) + (1 − t) θ0, without rounding the base.
        return base.add_(_mean(tasks), alpha=ratio(tasks))


def ratio(tasks: list[torch.Tensor]) -> float:
    """t of N task vectors: 1 if they are one and the same, 0 if they are orthogonal or oppose."""
    norms = [float(torch.linalg.vector_norm(t, dtype=torch.float64)) for t in tasks]
    cosines = [
        float(torch.sum(tasks[i] * tasks[j], dtype=torch.float64)) / (norms[i] * norms[j])
        if norms[i] and norms[j]
        else 0.0
        for i, j in combinations(range(len(tasks)), 2)
    ]
    c = min(max(sum(cosines) / len(cosines), 0.0), 1.0)
    return len(tasks) * c / (1 + (len(tasks) - 1) * c)


def _mean(tasks: list[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(tasks[0])
    for task in tasks:
        total.add_(task)
    return total.div_(len(tasks))
