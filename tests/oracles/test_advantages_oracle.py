"""Advantages of the family against slow versions written from the papers, and golden values."""

from __future__ import annotations

import itertools
import math
import pickle
import statistics
from functools import partial

import numpy as np
import pytest
import torch

from rlft.credit import (
    gdpo,
    group_relative,
    pass_at_k,
    poly_epo,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)
from rlft.credit.overlong import soft_overlong
from rlft.credit.token import discounted_return, gae, process_supervision, whiten


def groups_of(seed: int, sizes: tuple[int, ...] = (6, 4, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and ids of groups, shuffled."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(len(sizes)) * 7 - 5, sizes)
    order = rng.permutation(len(ids))
    return torch.tensor(rng.normal(0, 2, len(ids))[order]), torch.tensor(ids[order])


def by_group(group_B: torch.Tensor) -> list[list[int]]:
    return [[i for i, g in enumerate(group_B.tolist()) if g == k] for k in set(group_B.tolist())]


# -- REINFORCE++


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_pp_is_whitening_over_all_tokens(seed: int, baseline: bool) -> None:
    reward_B, group_B = groups_of(seed)
    length_B = torch.tensor(np.random.default_rng(seed).integers(1, 9, len(reward_B)))
    centred = reward_B.tolist()
    if baseline:
        for rows in by_group(group_B):
            mean = statistics.fmean(centred[i] for i in rows)
            for i in rows:
                centred[i] -= mean
    tokens = [x for x, n in zip(centred, length_B.tolist(), strict=True) for _ in range(n)]
    mean, deviation = statistics.fmean(tokens), statistics.stdev(tokens)
    expected = [(x - mean) / (deviation + 1e-3) for x in centred]
    got = (
        reinforce_pp_baseline(reward_B, group_B, length_B, eps=1e-3)
        if baseline
        else reinforce_pp(reward_B, length_B, eps=1e-3)
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_reinforce_pp_equals_returns_whitened_token_by_token() -> None:
    """The row form against the [B, T] form it replaces: reward at the last token, no discount."""
    reward_B, _ = groups_of(1)
    length_B = torch.tensor(np.random.default_rng(1).integers(1, 6, len(reward_B)))
    mask_BT = torch.arange(6) < length_B[:, None]
    last_BT = torch.arange(6) == length_B[:, None] - 1
    white_BT = whiten(discounted_return(reward_B[:, None] * last_BT, mask_BT), mask_BT)
    row_BT = reinforce_pp(reward_B, length_B)[:, None].double() * mask_BT
    torch.testing.assert_close(white_BT, row_BT, rtol=1e-5, atol=1e-6)
    assert white_BT[mask_BT].mean().item() == pytest.approx(0, abs=1e-9)
    assert white_BT[mask_BT].std().item() == pytest.approx(1, rel=1e-5)


def test_equal_rewards_teach_nothing() -> None:
    flat_B, ids_B = torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int64)
    lengths_B = torch.tensor([1, 2, 3, 4])
    assert reinforce_pp(flat_B, lengths_B).tolist() == [0] * 4
    assert reinforce_pp_baseline(flat_B, ids_B, lengths_B).tolist() == [0] * 4
    assert gdpo({"a": flat_B, "b": flat_B}, ids_B).tolist() == [0] * 4
    assert pass_at_k(flat_B.double(), ids_B, k=2).abs().max() < 1e-7


# -- GDPO


def test_gdpo_tells_apart_what_a_sum_cannot() -> None:
    """Totals 1 1 0 0: GRPO sees two kinds of rows. Apart: a rare success is worth more."""
    ids_B = torch.zeros(4, dtype=torch.int64)
    right_B, format_B = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 1, 0, 0])
    rare_B = torch.tensor([1.0, 0, 1, 1])
    assert (
        gdpo({"a": right_B, "b": format_B}, ids_B)[0]
        == gdpo({"a": right_B, "b": format_B}, ids_B)[1]
    )
    adv_B = gdpo({"a": right_B, "b": rare_B}, ids_B)
    assert group_relative(right_B + rare_B, ids_B)[2] == group_relative(right_B + rare_B, ids_B)[3]
    assert adv_B[0] > adv_B[2] == adv_B[3] > adv_B[1]


@pytest.mark.parametrize("seed", range(5))
def test_gdpo_agrees_with_the_paper(seed: int) -> None:
    _, group_B = groups_of(seed)
    rng = np.random.default_rng(seed)
    parts = {"right": rng.integers(0, 2, 15) * 1.0, "short": rng.normal(0, 100, 15)}
    total = [0.0] * 15
    for name, weight in (("right", 2.0), ("short", 0.5)):
        for rows in by_group(group_B):
            values = [parts[name][i] for i in rows]
            mean, deviation = statistics.fmean(values), statistics.stdev(values)
            for i in rows:
                total[i] += weight * (parts[name][i] - mean) / (deviation + 1e-6)
    mean, deviation = statistics.fmean(total), statistics.stdev(total)
    expected = [(x - mean) / (deviation + 1e-6) for x in total]
    tensors = {name: torch.tensor(values) for name, values in parts.items()}
    got = gdpo(tensors, group_B, weights={"right": 2.0, "short": 0.5})
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)


# -- pass@k


def slow_pass_at_k(rewards: list[float], k: int, baseline: str) -> list[float]:
    """Every set of k, one at a time."""
    n = len(rewards)
    places = range(n)
    out = []
    for i in places:
        holding = [s for s in itertools.combinations(places, k) if i in s]
        without = [s for s in itertools.combinations(places, k) if i not in s]
        best = [max(rewards[j] for j in s) for s in holding]
        if baseline == "loo":
            base = statistics.fmean(max(rewards[j] for j in s) for s in without)
            best = [b - base for b in best]
        if baseline == "loo_minus_one" and k > 1:
            rest = [max(rewards[j] for j in s if j != i) for s in holding]
            best = [b - r for b, r in zip(best, rest, strict=True)]
        out.append(k * statistics.fmean(best))
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("baseline", ["none", "loo", "loo_minus_one"])
def test_pass_at_k_is_the_mean_over_all_sets(baseline: str, k: int, seed: int) -> None:
    reward_B, group_B = groups_of(seed)
    if seed % 2:
        reward_B = (reward_B > 0).double()  # ties
    got = pass_at_k(reward_B, group_B, k=k, baseline=baseline)  # type: ignore[arg-type]
    for rows in by_group(group_B):
        expected = slow_pass_at_k(reward_B[rows].tolist(), k, baseline)
        np.testing.assert_allclose(got[rows].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("baseline", ["none", "loo", "loo_minus_one"])
def test_pass_at_k_gradient_is_unbiased_on_a_bandit(baseline: str, k: int) -> None:
    """By enumeration of 4 draws of two arms worth 0 and 1: d/dlogit of 1 - (1 - p)^k."""
    p, n = 0.3, 4
    truth = k * (1 - p) ** (k - 1) * p * (1 - p)
    total = 0.0
    for arms in itertools.product((0, 1), repeat=n):
        chance = math.prod(p if arm else 1 - p for arm in arms)
        reward_B = torch.tensor(arms, dtype=torch.float64)
        adv_B = pass_at_k(reward_B, torch.zeros(n, dtype=torch.int64), k=k, baseline=baseline)  # type: ignore[arg-type]
        total += chance * float((adv_B * (reward_B - p)).mean())
    assert total == pytest.approx(truth, rel=1e-5)


def test_pass_at_one_is_rloo() -> None:
    reward_B, group_B = groups_of(2)
    torch.testing.assert_close(
        pass_at_k(reward_B, group_B, k=1, baseline="loo"), rloo(reward_B, group_B)
    )


def test_pass_at_k_credits_the_only_success_and_never_a_failure_with_the_best_baseline() -> None:
    ids_B = torch.zeros(5, dtype=torch.int64)
    adv_B = pass_at_k(torch.tensor([0.0, 0, 1, 0, 0]), ids_B, k=3)
    assert adv_B.tolist() == [0, 0, 3, 0, 0]
    two_B = pass_at_k(torch.tensor([0.0, 1, 1, 0, 0]), ids_B, k=3)
    assert two_B.tolist() == pytest.approx([0, 1.5, 1.5, 0, 0])  # half of their sets hold the other


# -- Poly-EPO


def test_poly_epo_worked_case() -> None:
    """P7: rewards 1 0 0 0, clusters a b b a, sets of 2: the diverse failures are spared."""
    reward_B, ids_B = torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.int64)
    cluster_B = torch.tensor([0, 1, 1, 0])
    got = poly_epo(reward_B, ids_B, cluster_B, size=2, reduce="sum")
    assert got.tolist() == pytest.approx([0.5, 0, 0, -0.5])
    mean = poly_epo(reward_B, ids_B, cluster_B, size=2)
    assert mean.tolist() == pytest.approx([x / 3 for x in (0.5, 0, 0, -0.5)])


def slow_poly(rewards: list[float], clusters: list[int], size: int) -> list[float]:
    sets = list(itertools.combinations(range(len(rewards)), size))

    def score(s: tuple[int, ...]) -> float:
        kinds = {clusters[i] for i in s if clusters[i] >= 0}
        d = len(kinds) / size if len(kinds) > 1 else 0.0
        return statistics.fmean(rewards[i] for i in s) * d

    mean = statistics.fmean(score(s) for s in sets)
    return [sum(score(s) - mean for s in sets if i in s) for i in range(len(rewards))]


@pytest.mark.parametrize("seed", range(5))
def test_poly_epo_agrees_with_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, group_B = groups_of(seed)
    reward_B, cluster_B = torch.tensor(rng.random(15)), torch.tensor(rng.integers(-1, 3, 15))
    got = poly_epo(reward_B, group_B, cluster_B, size=3, reduce="sum")
    for rows in by_group(group_B):
        expected = slow_poly(reward_B[rows].tolist(), cluster_B[rows].tolist(), 3)
        np.testing.assert_allclose(got[rows].numpy(), expected, rtol=1e-5, atol=1e-6)
        assert float(got[rows].sum()) == pytest.approx(0, abs=1e-5)


def test_poly_epo_of_one_strategy_or_no_reward_is_nothing() -> None:
    reward_B, ids_B = torch.rand(6), torch.zeros(6, dtype=torch.int64)
    same_B, other_B = torch.ones(6, dtype=torch.int64), torch.arange(6)
    assert poly_epo(reward_B, ids_B, same_B, size=3).abs().max() == 0
    assert poly_epo(torch.zeros(6), ids_B, other_B, size=3).abs().max() == 0


def test_sampled_sets_are_exact_when_all_are_drawn_and_close_when_many_are() -> None:
    rng = np.random.default_rng(0)
    reward_B, ids_B = torch.tensor(rng.random(8)), torch.zeros(8, dtype=torch.int64)
    cluster_B = torch.tensor(rng.integers(0, 4, 8))
    whole = poly_epo(reward_B, ids_B, cluster_B)
    torch.testing.assert_close(poly_epo(reward_B, ids_B, cluster_B, sets=70), whole)
    torch.testing.assert_close(
        poly_epo(reward_B, ids_B, cluster_B, sets=60), whole, atol=0.03, rtol=0
    )
    few = poly_epo(reward_B, ids_B, cluster_B, sets=9, seed=1)
    torch.testing.assert_close(few, poly_epo(reward_B, ids_B, cluster_B, sets=9, seed=1))
    assert not torch.equal(few, poly_epo(reward_B, ids_B, cluster_B, sets=9, seed=2))


# -- per decision


def slow_gae(r: list[float], v: list[float], last: float, gamma: float, lam: float) -> list[float]:
    """The sum of the definition, over the decisions of one row."""
    values = [*v, last]
    delta = [r[t] + gamma * values[t + 1] - v[t] for t in range(len(r))]
    return [
        sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, len(r))) for t in range(len(r))
    ]


@pytest.mark.parametrize("seed", range(5))
def test_gae_is_the_sum_of_the_definition_with_gaps_between_decisions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = torch.tensor(rng.random((4, 7)) < 0.6)
    reward, value = torch.tensor(rng.normal(size=(4, 7))), torch.tensor(rng.normal(size=(4, 7)))
    last = torch.tensor(rng.normal(size=4))
    junk = [x.masked_fill(~mask, math.nan) for x in (reward, value)]
    credit = pickle.loads(pickle.dumps(partial(gae, gamma=0.9, lam=0.8)))
    adv, target = credit(*junk, last, mask)
    for b in range(4):
        here = mask[b]
        r, v = reward[b][here].tolist(), value[b][here].tolist()
        expected = slow_gae(r, v, last[b].item(), 0.9, 0.8)
        np.testing.assert_allclose(adv[b][here].numpy(), expected, rtol=1e-9)
        np.testing.assert_allclose(target[b][here].numpy(), np.add(expected, v), rtol=1e-9)
        assert adv[b][~here].abs().sum() == target[b][~here].abs().sum() == 0


def test_gae_at_its_two_ends() -> None:
    reward_BT = torch.tensor([[0.0, 0, 1], [2, 0, 0]])
    value_BT = torch.tensor([[0.5, 0.25, 0.125], [1, 1, 1]])
    mask_BT, none_B = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2)
    adv_BT, target_BT = gae(reward_BT, value_BT, none_B, mask_BT, lam=1.0)
    returns_BT = discounted_return(reward_BT, mask_BT)
    torch.testing.assert_close(target_BT, returns_BT)
    torch.testing.assert_close(adv_BT, returns_BT - value_BT)
    adv_BT, _ = gae(reward_BT, value_BT, none_B, mask_BT, lam=0.0)
    assert adv_BT.tolist() == [[-0.25, -0.125, 0.875], [2, 0, -1]]


def test_what_the_environment_says_in_between_does_not_discount() -> None:
    mask_BT = torch.tensor([[True, False, False, True], [True, True, False, False]])
    reward_BT = torch.tensor([[0.0, 9, 9, 1], [0, 1, 9, 9]])
    got = discounted_return(reward_BT, mask_BT, gamma=0.5)
    assert got.tolist() == [[0.5, 0, 0, 1], [0.5, 1, 0, 0]]


def test_process_supervision_by_hand() -> None:
    """Steps 1, 0 | 2 | 1, 3: mean 1.4; a decision has the rewards of the steps that end at or after it."""
    reward_BS = torch.tensor([[1.0, 0], [2, 0], [1, 3]])
    end_BS = torch.tensor([[1, 3], [2, -1], [0, 3]])
    steps = [1.0, 0, 2, 1, 3]
    mean, deviation = statistics.fmean(steps), statistics.stdev(steps)
    z = [(x - mean) / deviation for x in steps]
    got = process_supervision(reward_BS, end_BS, torch.zeros(3, dtype=torch.int64), 4, eps=0.0)
    expected = [
        [z[0] + z[1], z[0] + z[1], z[1], z[1]],
        [z[2], z[2], z[2], 0],
        [z[3] + z[4], z[4], z[4], z[4]],
    ]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_process_supervision_of_one_step_is_outcome_supervision() -> None:
    reward_B, group_B = groups_of(4)
    ends = torch.full((15, 1), 5)
    got = process_supervision(reward_B[:, None], ends, group_B, 6)
    torch.testing.assert_close(got, group_relative(reward_B, group_B)[:, None].expand(15, 6))


# -- lengths


def test_golden_soft_overlong_penalty() -> None:
    lengths = torch.tensor([1, 80, 90, 100, 101])
    assert soft_overlong(lengths, 100, 20).tolist() == [0, 0, -0.5, -1, -1]
    assert soft_overlong(lengths, 100, 20, 0.4).tolist() == pytest.approx([0, 0, -0.2, -0.4, -0.4])
    with pytest.raises(ValueError, match=r"\[1, 100\].*got 0"):
        soft_overlong(lengths, 100, 0)


# -- all of them


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows_does_not_matter(seed: int) -> None:
    reward_B, group_B = groups_of(seed)
    reward_B = reward_B.sigmoid()
    length_B, cluster_B = torch.arange(15) % 4 + 1, torch.arange(15) % 3
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
    r, g, n, c = (x[order] for x in (reward_B, group_B, length_B, cluster_B))
    pairs = [
        (reinforce_pp(reward_B, length_B), reinforce_pp(r, n)),
        (
            reinforce_pp_baseline(reward_B, group_B, length_B),
            reinforce_pp_baseline(r, g, n),
        ),
        (pass_at_k(reward_B, group_B, k=2), pass_at_k(r, g, k=2)),
        (poly_epo(reward_B, group_B, cluster_B, size=3), poly_epo(r, g, c, size=3)),
        (gdpo({"a": reward_B}, group_B), gdpo({"a": r}, g)),
    ]
    for whole, moved in pairs:
        torch.testing.assert_close(moved, whole[order])


def test_bad_input_is_refused() -> None:
    reward_B, group_B = groups_of(0)
    with pytest.raises(ValueError, match=r"k=9.*at least 9.*largest has 6"):
        pass_at_k(reward_B, group_B, k=9)
    with pytest.raises(ValueError, match=r"none, loo, loo_minus_one; got 'lo'"):
        pass_at_k(reward_B, group_B, baseline="lo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        poly_epo(reward_B, group_B, torch.zeros(15, dtype=torch.int64))
    with pytest.raises(ValueError, match="size must be at least 2"):
        poly_epo(reward_B, group_B, group_B, size=1)
    with pytest.raises(ValueError, match=r"'rigt'.*mean 'right'"):
        gdpo({"right": reward_B}, group_B, weights={"rigt": 1})
    with pytest.raises(ValueError, match="found none"):
        gdpo({"reward": reward_B}, group_B)
    with pytest.raises(ValueError, match="lengths of at least 0"):
        reinforce_pp(reward_B, torch.full((15,), -1))
    with pytest.raises(ValueError, match="ends at decision 9"):
        process_supervision(torch.ones(1, 1), torch.tensor([[9]]), torch.tensor([0]), 4)
