"""Weights for the gap between the engine that sampled and the learner that trains.

Both hold the same weights, yet their kernels and precision differ, so tokens drawn from the
engine's distribution are off-policy to the learner. The correction is the importance ratio
`rho = exp(old_logp - sample_logp)`, bounded, and multiplied onto the policy loss after its clip:
truncated (TIS, `min(rho, cap)`), masked (IcePop and MIS, `rho` inside a window and else 0) or a
rejection (1 inside a window and else 0: `rlft.losses.rejection`), for each token or for the whole
sequence (the product over its tokens). `rlft.losses.corrected` multiplies any number of them onto any loss.

Never use one where `old_logp` *is* `sample_logp` (the recompute was skipped): the surrogate's own
ratio then corrects already. Both log-probs must be taken at the same temperature. Left out:
batch-normalised weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlft.errors import ConfigError
from rlft.losses.aggregate import masked

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to plus or minus this before `exp`, as in verl: 4.9e8 at most."""


Correction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(old_logp, sample_logp, mask, on_policy) -> weight`: `[B, T]`, without gradient.

old_logp, sample_logp: nats `[B, T]` of the same tokens by learner and engine; mask: bool `[B, T]`;
on_policy: bool `[B]`. The weight is 0 where masked, 1 in rows that the policy did not choose (the
engine's log-prob of an injected token is stale or missing), and exactly 1 where the two sides
agree. A NaN in `sample_logp` anywhere else stays NaN, for the learner to report. Those below raise
ValueError if the shapes differ.
"""


class Weighing:
    """Base of corrections: each says what it makes of the log ratios."""

    __slots__ = ()

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The weight `[B, T]`, or `[B, 1]` of whole rows, of log ratios that are 0 where masked."""
        raise NotImplementedError

    def __call__(
        self,
        old_logp: torch.Tensor,
        sample_logp: torch.Tensor,
        mask: torch.Tensor,
        on_policy: torch.Tensor,
    ) -> torch.Tensor:
        gap_BT = log_gap(old_logp, sample_logp, mask, on_policy)
        return masked("weight", self.weigh(gap_BT, mask).expand_as(gap_BT), mask)


@dataclass(frozen=True, slots=True)
class Capped(Weighing):
    """A weight of at most `cap`, which is at least 1."""

    cap: float = 2.0

    def __post_init__(self) -> None:
        require_range("cap", self.cap, 1, math.inf)


@dataclass(frozen=True, slots=True)
class Windowed(Weighing):
    """A weight by whether a ratio lies in [low, high]: low in [0, 1], high at least 1."""

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        require_range("low", self.low, 0, 1)
        require_range("high", self.high, 1, math.inf)


@dataclass(frozen=True, slots=True)
class TokenTruncate(Capped):
    """`min(rho_t, cap)` for each token: truncated importance sampling. cap: at least 1."""

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ratio_of(gap_BT).clamp(max=self.cap)


@dataclass(frozen=True, slots=True)
class TokenMask(Windowed):
    """`rho_t` if `low <= rho_t <= high`, else 0: IcePop. low in [0, 1], high at least 1."""

    high: float = 5.0

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return window(ratio_of(gap_BT), self.low, self.high)


@dataclass(frozen=True, slots=True)
class SequenceTruncate(Capped):
    """`min(prod_t rho_t, cap)`, the same for every token of a row. cap: at least 1."""

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ratio_of(gap_BT.sum(1, keepdim=True)).clamp(max=self.cap)


@dataclass(frozen=True, slots=True)
class SequenceMask(Windowed):
    """`rho = prod_t rho_t` of the row if `low <= rho <= high`, else 0: MIS. Bounds as TokenMask."""

    def weigh(self, gap_BT: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return window(ratio_of(gap_BT.sum(1, keepdim=True)), self.low, self.high)


def mismatch(
    old_logp: torch.Tensor, sample_logp: torch.Tensor, mask: torch.Tensor, on_policy: torch.Tensor
) -> dict[str, torch.Tensor]:
    """How far engine and learner are apart on each token: `[B, T]`, nats, without gradient.

    `kl`: k3 estimate of KL(engine || learner), at least 0, unbiased over tokens the engine drew.
    `abs_gap`: |old_logp - sample_logp|. Both are 0 where masked and in rows that are not on-policy:
    divide their sum by the number of on-policy decisions, else those rows dilute the mean.
    """
    gap_BT = log_gap(old_logp, sample_logp, mask, on_policy)
    clamped_BT = gap_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return {"kl": torch.expm1(clamped_BT) - clamped_BT, "abs_gap": gap_BT.abs()}


def require_range(name: str, got: object, low: float, high: float) -> None:
    """Raises ConfigError (a ValueError) unless `got` is a number with `low <= got <= high`."""
    number = isinstance(got, int | float) and not isinstance(got, bool)
    if not (number and low <= got <= high):  # type: ignore[operator]
        raise ConfigError(f"{name} must be a number in [{low}, {high}], got {got!r}.")


def log_gap(
    old_logp: torch.Tensor, sample_logp: torch.Tensor, mask: torch.Tensor, on_policy: torch.Tensor
) -> torch.Tensor:
    """`old_logp - sample_logp` `[B, T]`, 0 where masked and in rows that are not on-policy."""
    if on_policy.shape != mask.shape[:1]:
        raise ValueError(
            f"on_policy must be [B] = {list(mask.shape[:1])}, got {list(on_policy.shape)}."
        )
    keep_BT = mask & on_policy[:, None]
    old_BT = masked("old_logp", old_logp.detach(), keep_BT)
    return old_BT - masked("sample_logp", sample_logp.detach(), keep_BT)


def ratio_of(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def window(rho: torch.Tensor, low: float, high: float) -> torch.Tensor:
    # A product, not `where`: a NaN must reach the learner instead of being masked away.
    return rho * ((rho >= low) & (rho <= high))
