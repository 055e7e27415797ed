"""The objective that algorithms for policies that act share, but for the policy's own loss."""

from __future__ import annotations

from rlft.losses.behaviour import KLToBehaviour
from rlft.losses.critic import ValueLoss
from rlft.losses.entropy import EntropyBonus
from rlft.schedule import Scheduled
from rlft.types import LossFn, Term


def acting_terms(
    policy: LossFn,
    *,
    value_clip: float | None,
    value_coef: Scheduled,
    entropy_coef: Scheduled,
    kl_coef: Scheduled,
) -> tuple[Term, ...]:
    """The policy's loss, the critic's, and, where their coefficients are not 0, the entropy bonus and the
    KL to the policy that collected."""
    terms = [Term("policy", policy), Term("value", ValueLoss(value_clip), value_coef)]
    if entropy_coef != 0:
        terms.append(Term("entropy_bonus", EntropyBonus(), entropy_coef))
    if kl_coef != 0:
        terms.append(Term("behaviour_kl", KLToBehaviour(), kl_coef))
    return tuple(terms)
