"""Losses: picklable, pure, unreduced. Each maps `(PolicyOut, Batch)` to `[B, T]`, 0 where masked, or `[B]`.

The learner reduces: `sum(weight * loss) / denominator` over the global batch (`aggregate`).
"""

from rlft.losses.aggregate import decision_weight, denominator, masked, per_decision
from rlft.losses.behaviour import KLToBehaviour
from rlft.losses.cispo import CISPO
from rlft.losses.correction import (
    Correction,
    SequenceMask,
    SequenceTruncate,
    TokenMask,
    TokenTruncate,
    mismatch,
)
from rlft.losses.dppo import DPPO
from rlft.losses.entropy import EntropyBonus
from rlft.losses.gmpo import GMPO
from rlft.losses.gspo import GSPO
from rlft.losses.kl import KLToReference
from rlft.losses.likelihood import NegativeLogLikelihood
from rlft.losses.reinforce import Reinforce
from rlft.losses.rejection import GeometricReject, SequenceReject, TokenReject
from rlft.losses.sapo import SAPO
from rlft.losses.surrogate import ClippedSurrogate

__all__ = [
    "CISPO",
    "DPPO",
    "GMPO",
    "GSPO",
    "SAPO",
    "ClippedSurrogate",
    "Correction",
    "EntropyBonus",
    "GeometricReject",
    "KLToBehaviour",
    "KLToReference",
    "NegativeLogLikelihood",
    "Reinforce",
    "SequenceMask",
    "SequenceReject",
    "SequenceTruncate",
    "TokenMask",
    "TokenReject",
    "TokenTruncate",
    "decision_weight",
    "denominator",
    "masked",
    "mismatch",
    "per_decision",
]
