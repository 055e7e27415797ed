"""Advantages relative to a group: one number a row, from the rewards of attempts at the same task."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from rlft.errors import ConfigError, did_you_mean

Std = Literal["group", "batch", "none"]
"""What the centred reward is divided by."""


def group_relative(
    reward_B: torch.Tensor,
    group_B: torch.Tensor,
    *,
    std: Std = "group",
    eps: float = 1e-6,
) -> torch.Tensor:
    """Advantage float32 `[B]`: `(r - mean of the group) / (s + eps)`; it sums to 0 in each group.

    reward_B: finite, any real dtype; group_B: integer ids, in any order and with any values;
    std: `s` is the standard deviation of the row's group, of the raw rewards of the whole batch,
    or `none` for no division at all (eps is then unused); eps: in units of reward, 0 allowed.

    A group whose rewards are all equal gets exactly 0, and so does a group of size 1: it has no
    baseline (verl passes its raw reward through instead).

    Sources: DeepSeekMath (arXiv 2402.03300, section 4.1.2) for `group`; Dr. GRPO (arXiv 2503.20783)
    for `none`; Lite PPO (arXiv 2508.08221) for `batch`. The paper does not say which deviation it
    means: here it is the unbiased one (n - 1), as in verl and TRL; eps is verl's (TRL: 1e-4).

    Raises ConfigError (a ValueError): unknown std, negative eps. ValueError: shapes that differ,
    ids that are not integers, a reward that is not finite.
    """
    choices = get_args(Std)
    if std not in choices:
        raise ConfigError(
            f"std must be one of {', '.join(choices)}; got {std!r}."
            f"{did_you_mean(str(std), choices)}"
        )
    if not (math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps must be finite and at least 0, got {eps!r}.")
    reward_B, index_B = checked(reward_B, group_B)
    centred_B, size_B = centred(reward_B, index_B)
    if std == "none":
        return centred_B.float()
    if std == "group":
        var_B = group_sum(centred_B**2, index_B) / (size_B - 1).clamp(min=1)
    else:
        var_B = ((reward_B - reward_B.mean()) ** 2).sum() / max(len(reward_B) - 1, 1)
    adv_B = centred_B / (var_B.sqrt() + eps)
    # With eps = 0 a flat group would be 0 / 0.
    return torch.where(centred_B == 0, 0.0, adv_B).float()


def rloo(reward_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Advantage float32 `[B]`: the reward minus the mean reward of the *others* in its group.

    The baseline of a row does not depend on that row, so the policy gradient stays unbiased; equal
    to `G / (G - 1)` times `group_relative(std="none")`. A group of size 1 has no others and gets 0.

    Source: RLOO (arXiv 2402.14740, section 3.2). Departures: no KL penalty is put into the reward
    (it is a term of its own, `kl_coef`), and the loss is chosen apart: the paper's is `Reinforce`.
    Arguments and errors as in `group_relative`.
    """
    reward_B, index_B = checked(reward_B, group_B)
    centred_B, size_B = centred(reward_B, index_B)
    return (centred_B * size_B / (size_B - 1).clamp(min=1)).float()


def checked(reward_B: torch.Tensor, group_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards as float64 and group ids as dense indices, or a ValueError."""
    if reward_B.ndim != 1 or reward_B.shape != group_B.shape:
        raise ValueError(
            f"expected rewards and group ids of one shape [B], got {list(reward_B.shape)} and "
            f"{list(group_B.shape)}."
        )
    if group_B.is_floating_point() or group_B.is_complex() or group_B.dtype == torch.bool:
        raise ValueError(f"group ids must be integers (int64), got {group_B.dtype}.")
    # float64: a float32 mean of near-equal rewards leaves rounding that the division would magnify.
    reward_B = reward_B.detach().double()
    bad_K = (~torch.isfinite(reward_B)).nonzero().flatten()
    if len(bad_K):
        first = int(bad_K[0])
        raise ValueError(
            f"rewards must be finite, got {float(reward_B[first])} at row {first} "
            f"({len(bad_K)} such rows). Drop rows whose reward failed before computing credit."
        )
    return reward_B, torch.unique(group_B, return_inverse=True)[1]


def centred(reward_B: torch.Tensor, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reward minus its group's mean, and the size of the group, both float64 `[B]`."""
    size_B = group_sum(torch.ones_like(reward_B), index_B)
    # Subtracting the group's least reward first makes a flat group exactly 0, whatever its value.
    low_B = torch.full_like(reward_B, math.inf)  # one slot a group; there are at most B groups
    low_B = low_B.scatter_reduce(0, index_B, reward_B, "amin").gather(0, index_B)
    shifted_B = reward_B - low_B
    return shifted_B - group_sum(shifted_B, index_B) / size_B, size_B


def group_sum(x_B: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    """For each row the sum of `x` over its group."""
    return torch.zeros_like(x_B).index_add(0, index_B, x_B).gather(0, index_B)
