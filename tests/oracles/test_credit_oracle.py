"""Group advantages against loops written from the papers, and golden values."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch

from rlft.credit import group_relative, rloo


def paper_group_relative(
    rewards: list[float], groups: list[int], std: str, eps: float
) -> list[float]:
    """(r - mean) / std, one row at a time. DeepSeekMath section 4.1.2; std with n - 1."""
    advantages = []
    for reward, group in zip(rewards, groups, strict=True):
        peers = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        centred = reward - statistics.fmean(peers)
        spread = {"group": peers, "batch": rewards}.get(std)
        if len(peers) == 1 or len(set(peers)) == 1:
            advantages.append(0.0)
        elif spread is None:
            advantages.append(centred)
        else:
            advantages.append(centred / (statistics.stdev(spread) + eps))
    return advantages


def paper_rloo(rewards: list[float], groups: list[int]) -> list[float]:
    """r_i minus the mean of the others (RLOO, arXiv 2402.14740)."""
    advantages = []
    for i, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        others = [rewards[j] for j, g in enumerate(groups) if g == group and j != i]
        advantages.append(reward - statistics.fmean(others) if others else 0.0)
    return advantages


def random_case(seed: int) -> tuple[list[float], list[int]]:
    """Groups of sizes 1 to 6, shuffled, with ids neither dense nor positive; some are flat."""
    rng = np.random.default_rng(seed)
    rewards, groups = [], []
    for group in rng.choice(np.arange(-50, 50), size=5, replace=False):
        size = int(rng.integers(1, 7))
        kind = rng.integers(3)
        drawn = [rng.normal(0, 3, size), rng.integers(0, 2, size), np.full(size, 0.1)][kind]
        rewards += [float(r) for r in drawn]
        groups += [int(group)] * size
    order = rng.permutation(len(rewards))
    return [rewards[i] for i in order], [groups[i] for i in order]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_group_relative_agrees_with_the_paper(seed: int, std: Any) -> None:
    rewards, groups = random_case(seed)
    expected = paper_group_relative(rewards, groups, std, eps=1e-4)
    got = group_relative(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), std=std, eps=1e-4
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_rloo_agrees_with_the_paper(seed: int) -> None:
    rewards, groups = random_case(seed)
    expected = paper_rloo(rewards, groups)
    got = rloo(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("injected", [0.01, 1.0, 50.0])
def test_one_better_member_of_four_is_always_worth_three_halves(injected: float) -> None:
    # Three equal rewards and one better: the same constants however far above it is.
    rewards_B = torch.tensor([0.0, 0.0, 0.0, injected], dtype=torch.float64)
    got = group_relative(rewards_B, torch.zeros(4, dtype=torch.int64), eps=0.0)
    np.testing.assert_allclose(got.numpy(), [-0.5, -0.5, -0.5, 1.5], rtol=1e-7)


def test_eps_is_added_to_the_deviation_not_to_the_variance() -> None:
    # Rewards 0 and 1: mean 1/2, unbiased deviation sqrt(1/2).
    got = group_relative(torch.tensor([0.0, 1.0]), torch.tensor([3, 3]), eps=0.25)
    side = 0.5 / (math.sqrt(0.5) + 0.25)
    np.testing.assert_allclose(got.numpy(), [-side, side], rtol=1e-6)


def test_expected_gradient_on_a_two_armed_bandit() -> None:
    """By enumeration: leave-one-out is unbiased, mean-centring shrinks by (G - 1) / G."""
    size, p, reward_of = 3, 0.3, (0.2, 1.7)
    # J(logit) = E[r] with P(arm 1) = sigmoid(logit): dJ = p (1 - p) (r1 - r0); score = arm - p.
    true_gradient = p * (1 - p) * (reward_of[1] - reward_of[0])
    expected = {"rloo": 0.0, "centred": 0.0}
    for arms in itertools.product((0, 1), repeat=size):
        chance = math.prod(p if arm else 1 - p for arm in arms)
        reward_B = torch.tensor([reward_of[arm] for arm in arms], dtype=torch.float64)
        group_B = torch.zeros(size, dtype=torch.int64)
        score_B = torch.tensor([arm - p for arm in arms])
        for name, adv_B in {
            "rloo": rloo(reward_B, group_B),
            "centred": group_relative(reward_B, group_B, std="none"),
        }.items():
            expected[name] += chance * float((adv_B * score_B).mean())
    assert expected["rloo"] == pytest.approx(true_gradient, rel=1e-5)
    assert expected["centred"] == pytest.approx(true_gradient * (size - 1) / size, rel=1e-5)
