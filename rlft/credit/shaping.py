"""Stabilisers: advantages of groups that hold a reference row which is better than every sample.

Standardised over such a group, all samples come out negative and the policy only imitates. Three
remedies of TempSamp-R1 (arXiv 2509.18056, section 3.3), which exclude each other, and none:

- `joint`: none of them; statistics over all rows (equation 2, and LUFFY, arXiv 2504.14945).
- `downscale`: the reference's reward is bounded by a share of the best possible one.
- `anchor`: statistics over samples only; the reference gets a multiple of the best sample (eq. 3).
- `shape`: rewards near the top are compressed, differences near the bottom stretched (eq. 4).

Each maps `(Scored, credit)` to advantages float32 `[B]`, where `credit(reward [B], group [B])` is
the algorithm's own advantage. Pure, on the driver. With a group-relative credit none of them moves a
group whose samples are all equal: standardised, every spacing of two values is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlft.errors import ConfigError

Credit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

__all__ = ["anchor", "downscale", "joint", "shape"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Rewards of rows, `[B]` each. task: the term that shaping acts on; rest: the other terms, so
    that the reward is `task + rest`; group: int64 ids; sampled: bool, False for reference rows."""

    task: torch.Tensor
    rest: torch.Tensor
    group: torch.Tensor
    sampled: torch.Tensor

    @property
    def reward(self) -> torch.Tensor:
        return self.task + self.rest


def joint(rows: Scored, credit: Credit) -> torch.Tensor:
    """The credit over all rows of a group, reference rows like any other."""
    return credit(rows.reward, rows.group)


@dataclass(frozen=True, slots=True)
class downscale:
    """References earn at most `share * most`; then as `joint`. most: the best possible reward.

    The paper's example sets the reference to 0.8 of the maximum; here a reference that scored less is
    not raised. Once samples beat the bound, the reference is pushed away from.
    """

    share: float = 0.8
    most: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and math.isfinite(self.most)):
            raise ConfigError(
                f"downscale needs 0 < share <= 1 and a finite most, got {self.share}, {self.most}."
            )

    def __call__(self, rows: Scored, credit: Credit) -> torch.Tensor:
        bounded_B = rows.reward.clamp(max=self.share * self.most)
        return credit(torch.where(rows.sampled, rows.reward, bounded_B), rows.group)


@dataclass(frozen=True, slots=True)
class anchor:
    """Samples get the credit over samples alone; a reference gets `scale` times their best advantage.

    least: the reference's advantage is at least this. The paper has no such floor: it gives the
    reference exactly 0 where all samples are equally bad, which is where it would be of most use.
    """

    scale: float = 1.2
    least: float = 0.0

    def __post_init__(self) -> None:
        if not (self.scale >= 0 and self.least >= 0):
            raise ConfigError(
                f"anchor needs scale and least of at least 0, got {self.scale}, {self.least}."
            )

    def __call__(self, rows: Scored, credit: Credit) -> torch.Tensor:
        adv_B = torch.zeros(len(rows.task))
        adv_B[rows.sampled] = credit(rows.reward[rows.sampled], rows.group[rows.sampled])
        for row in (~rows.sampled).nonzero().flatten().tolist():
            peers_B = rows.sampled & (rows.group == rows.group[row])
            best = float(adv_B[peers_B].max()) if bool(peers_B.any()) else 0.0
            adv_B[row] = max(self.scale * best, self.least)
        return adv_B


@dataclass(frozen=True, slots=True)
class shape:
    """The task term of every row passes through `shaped`; then as `joint`.

    tau: where compression begins; above: strength of the logarithm there (the paper's alpha1);
    below: bend of the exponential under tau (alpha2). Made for a term in [0, 1], such as an IoU.
    """

    tau: float = 0.8
    above: float = 0.01
    below: float = 1.0

    def __post_init__(self) -> None:
        if not (self.above >= 0 and self.below > 0 and math.isfinite(self.tau)):
            raise ConfigError(
                f"shape needs a finite tau, above >= 0 and below > 0; got tau={self.tau}, "
                f"above={self.above}, below={self.below}."
            )

    def __call__(self, rows: Scored, credit: Credit) -> torch.Tensor:
        return credit(self.shaped(rows.task) + rows.rest, rows.group)

    def shaped(self, reward: torch.Tensor) -> torch.Tensor:
        """`tau + above ln(r - tau + 1)` from tau up, `tau - (e^(below (tau - r)) - 1) / (e^below - 1)`
        under it: continuous and rising, `tau` itself stays."""
        over = (reward - self.tau).clamp(min=0)
        under = (self.tau - reward).clamp(min=0)
        high = self.tau + self.above * torch.log1p(over)
        low = self.tau - torch.expm1(self.below * under) / math.expm1(self.below)
        return torch.where(reward >= self.tau, high, low)


def diagnostics(rows: Scored, adv_B: torch.Tensor, credit: Credit) -> dict[str, float]:
    """What the references did to their groups: shares and means, keys `reference/...`.

    Over groups with a reference and at least one sample: `dominates`, the share of groups in which a
    reference has a higher advantage than every sample; `no_positive`, in which no sample has a
    positive one; `sign_flips`, the share of samples whose advantage has another sign than without
    the references; `shift`, the mean of |change of the mean reward| / deviation of the samples. The
    last two leave out groups whose samples deviate by less than 0.001. Also the references' mean
    advantage, its absolute value, and how many `rows` they are.
    """
    given_B = ~rows.sampled
    out = {"reference/rows": float(given_B.sum())}
    dominates, barren, flips, shifts = [], [], [], []
    for group in torch.unique(rows.group[given_B]).tolist():
        own_B = rows.sampled & (rows.group == group)
        ref_B = given_B & (rows.group == group)
        if not bool(own_B.any()):
            continue
        dominates.append(float(adv_B[ref_B].max() > adv_B[own_B].max()))
        barren.append(float(not bool((adv_B[own_B] > 0).any())))
        own = rows.reward[own_B]
        deviation = float(own.std()) if len(own) > 1 else 0.0
        if deviation < 1e-3:
            continue
        alone = credit(own, rows.group[own_B])
        flips += (torch.sign(alone) != torch.sign(adv_B[own_B])).float().tolist()
        mixed = rows.reward[own_B | ref_B].mean()
        shifts.append(abs(float(mixed - own.mean())) / deviation)
    if bool(given_B.any()):
        out["reference/adv"] = float(adv_B[given_B].mean())
        out["reference/abs_adv"] = float(adv_B[given_B].abs().mean())
    named = {"dominates": dominates, "no_positive": barren, "sign_flips": flips, "shift": shifts}
    return out | {f"reference/{n}": sum(v) / len(v) for n, v in named.items() if v}
