"""Pass@k policy optimisation (PKPO, arXiv 2505.15201): credit for the best of k, without bias."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from rlft.credit.group import checked
from rlft.errors import ConfigError, did_you_mean

Baseline = Literal["none", "loo", "loo_minus_one"]


def pass_at_k(
    reward_B: torch.Tensor,
    group_B: torch.Tensor,
    *,
    k: int = 4,
    baseline: Baseline = "loo_minus_one",
) -> torch.Tensor:
    """Advantage float32 `[B]` whose policy gradient is, without bias, that of the expected best of k.

    For member i of a group of n, over all sets S of k members that hold i: `k` times the mean of
    `max(S) - b`. baseline: `loo_minus_one`, b is max(S without i), so only a member that is the best
    of some set earns (the least variance); `loo`, b is the mean of max over the sets of k that do not
    hold i, which needs n > k; `none`, 0. With k = 1 and `loo` it is RLOO. With 0/1 rewards the
    best of k is pass@k. Rewards may be any finite number; `loo_minus_one` at k = 1 subtracts nothing.

    A group too small for an estimate (fewer than k members, or k + 1 for `loo`) gets 0; if all are,
    that is a ConfigError.

    Source: equations 12 (estimator), 29 (`loo`) and 33 (`loo_minus_one`). Departure: times n, so that
    a mean over a group's rows is the estimate (the paper's sum over them is).
    """
    if baseline not in get_args(Baseline):
        raise ConfigError(
            f"baseline must be one of {', '.join(get_args(Baseline))}; got {baseline!r}."
            f"{did_you_mean(str(baseline), get_args(Baseline))}"
        )
    reward_B, index_B = checked(reward_B, group_B)
    least = k + (baseline == "loo")
    adv_B = torch.zeros_like(reward_B)
    members = [(index_B == group).nonzero().flatten() for group in index_B.unique()]
    enough = [m for m in members if len(m) >= least]
    if k < 1 or (members and not enough):
        largest = max((len(m) for m in members), default=0)
        raise ConfigError(
            f"pass_at_k with k={k} and baseline {baseline} needs groups of at least {max(least, 1)}; "
            f"the largest has {largest}. Raise algo.group_size or lower k (at least 1)."
        )
    for rows in enough:
        adv_B[rows] = _of_group(reward_B[rows], k, baseline)
    return adv_B.float()


pass_at_k.members_needed = lambda k, baseline, **keys: k + (baseline == "loo")  # type: ignore[attr-defined]


def _of_group(reward_N: torch.Tensor, k: int, baseline: str) -> torch.Tensor:
    n = len(reward_N)
    with_N, total = _sums_of_max(reward_N, k)
    sets = math.comb(n - 1, k - 1)  # how many hold a given member
    if baseline == "none":
        return k * with_N / sets
    if baseline == "loo":
        return k * (with_N / sets - (total - with_N) / math.comb(n - 1, k))
    if k == 1:
        return with_N
    without_N, total = _sums_of_max(reward_N, k - 1)
    return k * (with_N - (total - without_N)) / sets


def _sums_of_max(reward_N: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Over all sets of k: the sum of max over the sets that hold each member, and over all sets.

    The i-th smallest is the best of comb(i - 1, k - 1) sets; together with a given smaller one, of
    comb(i - 2, k - 2).
    """
    sorted_N, order_N = reward_N.sort()
    places = range(1, len(reward_N) + 1)

    def choose(n: int, k: int) -> int:
        return math.comb(n, k) if n >= 0 and k >= 0 else 0

    best_N = torch.tensor([float(choose(i - 1, k - 1)) for i in places], dtype=torch.float64)
    pair_N = torch.tensor([float(choose(i - 2, k - 2)) for i in places], dtype=torch.float64)
    above_N = (sorted_N * pair_N).flip(0).cumsum(0).flip(0) - sorted_N * pair_N
    sums_N = torch.empty_like(sorted_N)
    sums_N[order_N] = sorted_N * best_N + above_N
    return sums_N, (sorted_N * best_N).sum()
