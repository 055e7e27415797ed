"""Staying near the policy that collected: the exact KL of each state, not of the sampled action."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlft.losses.aggregate import masked
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class KLToBehaviour:
    """`KL(pi_beta(.|s) || pi(.|s))` of each decision, nats `[B, T]`, 0 with zero gradient where masked.

    pi_beta is the policy that drew the action, whose distribution travels with it. Source: PPO's KL
    penalty (arXiv 1707.06347, equation 8) in the direction of polychromic PPO (arXiv 2509.25424).
    Raises ValueError: a policy that does not say it, such as a language model.
    """

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        if out.behaviour_kl is None:
            raise ValueError(
                "KLToBehaviour needs the distribution that actions were drawn from: for environments; "
                "for a language model use the kl of algo (KLToReference)."
            )
        return masked("behaviour_kl", out.behaviour_kl, batch.mask)
