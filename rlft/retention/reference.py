"""KL to the reference, estimated from the sampled tokens, for algorithms that have no such key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlft.losses.kl import Estimator, KLToReference
from rlft.retention.term import Retention
from rlft.schedule import Kept
from rlft.types import Term


@dataclass(frozen=True)
class Reference(Retention):
    """estimator: of `KLToReference`, which says what each is. The reference is the start model. A policy
    that acts has its whole distribution at hand: use `kickstarting` there, which is exact."""

    acting: ClassVar[bool] = False

    coef: Kept = 0.01
    estimator: Estimator = "k3"
    called: str = "reference"

    def term(self) -> Term:
        return Term(self.called, KLToReference(self.estimator), self.coef)
