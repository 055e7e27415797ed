"""Losses: picklable, pure, unreduced. Each maps `(PolicyOut, Batch)` to `[B, T]`, 0 where masked.

The learner reduces: `sum(weight * loss) / denominator` over the global batch (`aggregate`).
"""

from rlft.losses.aggregate import decision_weight, denominator, masked
from rlft.losses.correction import (
    Correction,
    SequenceMask,
    SequenceTruncate,
    TokenMask,
    TokenTruncate,
    mismatch,
)
from rlft.losses.kl import KLToReference
from rlft.losses.likelihood import NegativeLogLikelihood
from rlft.losses.surrogate import ClippedSurrogate

__all__ = [
    "ClippedSurrogate",
    "Correction",
    "KLToReference",
    "NegativeLogLikelihood",
    "SequenceMask",
    "SequenceTruncate",
    "TokenMask",
    "TokenTruncate",
    "decision_weight",
    "denominator",
    "masked",
    "mismatch",
]
