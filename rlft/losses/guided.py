"""Losses for batches in which some tokens were given to the policy instead of chosen by it.

A given token is one with a NaN `sample_logp` in a row that is not on-policy: a demonstration, or the
prefix of one. The engine never said how likely it was, so no such token meets a ratio to the engine.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch

from rlft.errors import ConfigError
from rlft.losses.aggregate import Aggregation, masked, per_decision
from rlft.losses.corrected import Corrected
from rlft.losses.surrogate import ClippedSurrogate
from rlft.types import Batch, LossFn, PolicyOut


def given_mask(batch: Batch) -> torch.Tensor:
    """bool `[B, T]`: trained tokens that were given. A NaN in a row of the policy itself is not one:
    it stays in the loss, for the learner to report."""
    return batch.mask & batch.sample_logp.isnan() & ~batch.on_policy[:, None]


@dataclass(frozen=True, slots=True)
class Guided:
    """`policy` on tokens that the policy chose, `reference` on given ones; None: 0 there.

    Each sees a batch masked to its own tokens. Without a given token the loss and its gradient are
    those of `policy`, bit for bit. Both are always called: every rank must report the same names.
    prefix_weight: factor on the advantage of given tokens, 1/n for a prefix that n rows share;
    top_entropy: only this share of a row's given tokens, those of highest entropy, keeps its
    advantage (Prefix-RFT, arXiv 2507.01679); 1: all.
    """

    policy: LossFn = field(default_factory=lambda: Corrected(ClippedSurrogate()))
    reference: LossFn | None = field(default_factory=ClippedSurrogate)
    prefix_weight: float = 1.0
    top_entropy: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.top_entropy <= 1:
            raise ConfigError(f"top_entropy must lie in [0, 1], got {self.top_entropy}.")

    @property
    def needs(self) -> tuple[str, ...]:
        both = (self.policy, self.reference)
        return tuple({n for loss in both for n in getattr(loss, "needs", ())})

    @property
    def aggregate(self) -> Aggregation:
        """What the loss of the policy's own tokens asks for."""
        return getattr(self.policy, "aggregate", "token")

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B, T]` and the diagnostics of both parts, NaN on tokens that are not theirs."""
        given_BT = given_mask(batch)
        chosen_BT = batch.mask & ~given_BT
        chosen = dataclasses.replace(batch, mask=chosen_BT, on_policy=chosen_BT.any(1))
        loss_BT, found = _parts(self.policy, out, chosen)
        named = {n: _only(value, chosen_BT) for n, value in found.items()}
        if self.reference is None:
            return loss_BT, named
        adv_BT = batch.adv * self.prefix_weight
        if self.top_entropy < 1:
            adv_BT = adv_BT * _most_uncertain(out.entropy.detach(), given_BT, self.top_entropy)
        given = dataclasses.replace(
            batch, mask=given_BT, adv=adv_BT, on_policy=torch.zeros_like(batch.on_policy)
        )
        reference_BT, found = _parts(self.reference, out, given)
        named |= {f"reference/{n}": _only(value, given_BT) for n, value in found.items()}
        return loss_BT + reference_BT, named


@dataclass(frozen=True, slots=True)
class LikelihoodRatio:
    """`-f(p) A`, `p = exp(logp)`: the ratio to a behaviour probability of 1, without a clip.

    gamma: `f(p) = p / (p + gamma)`, so that unlikely tokens, too, have a gradient (LUFFY, arXiv
    2504.14945, section 3.3; there 0.1): it is at most 1/4, where p is gamma. None: `f(p) = p`.
    `old_logp` and `sample_logp` are not read.
    """

    gamma: float | None = 0.1

    def __post_init__(self) -> None:
        if self.gamma is not None and not (0 < self.gamma < math.inf):
            raise ConfigError(f"gamma must be positive, or null for none; got {self.gamma}.")

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        p_BT = masked("logp", out.logp, batch.mask).exp()
        f_BT = p_BT if self.gamma is None else p_BT / (p_BT + self.gamma)
        loss_BT = -masked("adv", batch.adv, batch.mask) * f_BT
        return masked("loss", loss_BT, batch.mask), {"probability": p_BT.detach()}


@dataclass(frozen=True, slots=True)
class ReferenceLikelihood:
    """`-logp` of given tokens, nats `[B, T]`, 0 elsewhere; the advantage is not read.

    entropy_weight: times `exp(-H)`, H the mean entropy of the row's given tokens, without gradient:
    imitate where the policy is sure enough (SRFT, arXiv 2506.19767; H per row, so that it does not
    depend on how rows were batched).
    """

    entropy_weight: bool = False

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        given_BT = given_mask(batch)
        loss_BT = -masked("logp", out.logp, given_BT)
        if self.entropy_weight:
            loss_BT = loss_BT * torch.exp(-_row_mean(out.entropy, given_BT))
        return loss_BT


@dataclass(frozen=True, slots=True)
class SignedLikelihood:
    """`-coef exp(H) logp` where the advantage is positive, `+logp` where it is negative (SRFT).

    H: the row's mean entropy, without gradient. `logp` of a bad answer is unbounded below: tokens less
    likely than `least` nats have no gradient any more, which the paper does not say.
    """

    coef: float = 0.1
    least: float = -5.0

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        adv_BT = masked("adv", batch.adv, batch.mask)
        logp_BT = masked("logp", out.logp, batch.mask)
        weight_B1 = self.coef * torch.exp(_row_mean(out.entropy, batch.mask))
        good_BT, bad_BT = -weight_B1 * logp_BT, logp_BT.clamp(min=self.least)
        return torch.where(
            adv_BT > 0, good_BT, torch.where(adv_BT < 0, bad_BT, torch.zeros_like(bad_BT))
        )


def _parts(
    loss: LossFn, out: PolicyOut, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`[B, T]`, 0 where masked, whatever the kind of `loss`, and its diagnostics."""
    value = loss(out, batch)
    value, found = value if isinstance(value, tuple) else (value, {})
    return per_decision(type(loss).__name__, value, batch.mask), found


def _only(value_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return torch.where(mask_BT, value_BT.detach(), torch.nan)


def _row_mean(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean `[B, 1]` over each row's masked decisions, without gradient; 0 where it has none."""
    total_B1 = masked("entropy", x_BT.detach(), mask_BT).sum(1, keepdim=True)
    return total_B1 / mask_BT.sum(1, keepdim=True).clamp(min=1)


def _most_uncertain(entropy_BT: torch.Tensor, mask_BT: torch.Tensor, share: float) -> torch.Tensor:
    """1.0 at each row's `ceil(share * n)` masked decisions of highest entropy, the earlier first."""
    ranked_BT = torch.where(mask_BT, entropy_BT, -torch.inf)
    order_BT = ranked_BT.argsort(dim=1, descending=True, stable=True)
    rank_BT = order_BT.argsort(dim=1)
    kept_B1 = torch.ceil(share * mask_BT.sum(1, keepdim=True))
    return (mask_BT & (rank_BT < kept_B1)).to(entropy_BT.dtype)
