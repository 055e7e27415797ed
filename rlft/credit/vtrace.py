"""Credit for data that other weights collected: V-trace (IMPALA, arXiv 1802.01561)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.credit.decision import Seen
from rlft.errors import ConfigError
from rlft.losses.aggregate import masked


def vtrace(
    reward_BT: torch.Tensor,
    value_BT: torch.Tensor,
    bootstrap_B: torch.Tensor,
    log_ratio_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
    rho: float = 1.0,
    c: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Policy-gradient advantage and the value's target `v_s`, both `[B, T]`, 0 where masked.

    `v_s = V(s) + sum_t gamma^(t-s) (prod c_i) rho_t (r_t + gamma V(t+1) - V(t))`, with
    `rho_t = min(rho, ratio)`, `c_i = lam min(c, ratio)`; the advantage is
    `rho_s (r_s + gamma v_(s+1) - V(s))`. log_ratio_BT: policy to behaviour, nats. With ratio 1 the target
    is that of GAE(lam).
    """
    reward_BT, value_BT = masked("reward", reward_BT, mask_BT), masked("value", value_BT, mask_BT)
    ratio_BT = masked("log_ratio", log_ratio_BT, mask_BT).clamp(-20, 20).exp()
    rho_BT, c_BT = ratio_BT.clamp(max=rho), lam * ratio_BT.clamp(max=c)
    adv_BT, target_BT = torch.zeros_like(value_BT), torch.zeros_like(value_BT)
    next_value_B = next_target_B = bootstrap_B.to(value_BT.dtype)
    for t in reversed(range(mask_BT.shape[1])):
        here_B, value_B = mask_BT[:, t], value_BT[:, t]
        delta_B = rho_BT[:, t] * (reward_BT[:, t] + gamma * next_value_B - value_B)
        target_B = value_B + delta_B + gamma * c_BT[:, t] * (next_target_B - next_value_B)
        adv_B = rho_BT[:, t] * (reward_BT[:, t] + gamma * next_target_B - value_B)
        adv_BT[:, t] = torch.where(here_B, adv_B, 0.0)
        target_BT[:, t] = torch.where(here_B, target_B, 0.0)
        next_value_B = torch.where(here_B, value_B, next_value_B)
        next_target_B = torch.where(here_B, target_B, next_target_B)
    return adv_BT, target_BT


@dataclass(frozen=True, slots=True)
class VTrace:
    """`vtrace` as credit, of policy and values as they are now: anew for each minibatch.

    gamma, lam: in [0, 1]; rho, c: the bounds of the ratios, above 0. What came after a row is valued as
    it was when the row was collected (departure: IMPALA values it anew).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    anew: ClassVar[bool] = True

    gamma: float = 0.99
    lam: float = 1.0
    rho: float = 1.0
    c: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("gamma", 0, 1),
            ("lam", 0, 1),
            ("rho", 1e-6, 1e6),
            ("c", 1e-6, 1e6),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}.")

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        assert seen.value is not None and seen.over is not None
        assert seen.old_logp is not None and seen.sample_logp is not None
        gap_BT = masked("old_logp", seen.old_logp, seen.mask) - masked(
            "sample_logp", seen.sample_logp, seen.mask
        )
        return vtrace(
            *(seen.reward, seen.value, seen.over, gap_BT, seen.mask),
            gamma=self.gamma,
            lam=self.lam,
            rho=self.rho,
            c=self.c,
        )
