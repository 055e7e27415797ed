"""Credit for sets, overlays and V-trace against slow sums, and invariants P1 to P8 of the objective."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from algos.polychromic import Polychromic
from rlft import registry
from rlft.config import load_config
from rlft.credit.decision import GAE, Seen
from rlft.credit.overlay import Overlay
from rlft.credit.sets import normalised, polychromic
from rlft.credit.vtrace import VTrace, vtrace
from rlft.diversity import rooms
from rlft.errors import ConfigError
from rlft.learning.visits import Visits
from rlft.types import Episode


class Drawn:
    """A generator whose permutations are given: the sets are known."""

    def __init__(self, sets):
        self.sets = list(sets)

    def permutation(self, n):
        chosen = self.sets.pop(0)
        return np.array([*chosen, *[i for i in range(n) if i not in chosen]])


def episode(*visited):
    return {"room": np.array(visited)[:, None]}


FOUR = [episode(0), episode(1), episode(1), episode(0)]  # clusters a, b, b, a


def test_the_worked_case_of_six_sets():
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    adv, score = polychromic([1, 0, 0, 0], FOUR, rooms, Drawn(pairs), size=2, sets=6)
    assert score.tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert adv == pytest.approx([0.5, 0, 0, -0.5])
    assert adv.sum() == pytest.approx(0), "P2: over all sets"


def test_members_of_a_set_share_its_score_and_others_have_none():
    adv, score = polychromic(
        [1, 0.5, 0, 0.25], FOUR, rooms, Drawn([(0, 1), (2, 3)]), size=2, sets=2
    )
    above = score - score.mean()
    assert adv == pytest.approx([above[0], above[0], above[1], above[1]])
    adv, _ = polychromic([1, 0.5, 0, 0.25], FOUR, rooms, Drawn([(0, 1), (2, 0)]), size=2, sets=2)
    assert np.isnan(adv).tolist() == [False, False, False, True]


def test_sets_are_all_different_whatever_is_drawn():
    drawn = Drawn([(0, 1), (1, 0), (0, 1), (2, 3)])
    _, score = polychromic([1, 0.5, 0, 0.25], FOUR, rooms, drawn, size=2, sets=2)
    assert score.tolist() == [0.75, 0.125]  # of (0, 1) and of (2, 3)
    assert drawn.sets == []


@pytest.mark.parametrize("sets", [6, 7, 100])
def test_of_few_members_every_set_is_taken_once(sets):
    adv, score = polychromic([1, 0, 0, 0], FOUR, rooms, None, size=2, sets=sets)
    assert sorted(score) == [0, 0, 0, 0, 0.5, 0.5]
    assert adv.sum() == pytest.approx(0)


def test_the_baseline_of_the_others():
    pairs = [(0, 1), (0, 2), (1, 3)]
    returns = [1, 0.5, 0.25, 0]
    adv, score = polychromic(returns, FOUR, rooms, Drawn(pairs), size=2, sets=3, baseline="loo")
    expected = [0.0] * 4
    for j, pair in enumerate(pairs):
        others = [score[i] for i in range(3) if i != j]
        for i in pair:
            expected[i] += score[j] - sum(others) / 2
    assert adv == pytest.approx(expected)


def test_where_nothing_differs_or_nothing_is_earned_there_is_no_advantage():
    rng = np.random.default_rng(0)
    alike = [episode(0, 1)] * 8
    adv, score = polychromic(np.linspace(0, 1, 8), alike, rooms, rng)
    assert not score.any()
    assert not np.nan_to_num(adv).any()
    different = [episode(i) for i in range(8)]
    adv, score = polychromic([0] * 8, different, rooms, rng)
    assert not score.any()
    assert not np.nan_to_num(adv).any()


def test_scores_lie_between_0_and_1_and_returns_must():
    rng = np.random.default_rng(0)
    for _ in range(20):
        traces = [episode(int(rng.integers(3))) for _ in range(8)]
        _, score = polychromic(rng.random(8), traces, rooms, rng)
        assert ((score >= 0) & (score <= 1)).all()
    with pytest.raises(ConfigError, match="return_range"):
        polychromic([1.5, 0, 0, 0], FOUR, rooms, rng)
    with pytest.raises(ConfigError, match="set_size"):
        polychromic([1, 0], FOUR[:2], rooms, rng)
    assert normalised([5, 10], 0, 20) == [0.25, 0.5]
    rounded = normalised([float(sum([np.float32(0.1)] * 10)), 0, 0, 0], 0, 1)
    assert rounded[0] > 1
    same = polychromic(rounded, FOUR, rooms, np.random.default_rng(1))[1]
    assert (same == polychromic([1, 0, 0, 0], FOUR, rooms, np.random.default_rng(1))[1]).all()


@pytest.mark.parametrize("keys", [{"vines": 4, "set_size": 4}, {"sets": 1}])
def test_sets_that_are_all_the_same_are_refused(keys):
    with pytest.raises(ConfigError, match="no two sets to compare"):
        Polychromic(**keys)


def test_a_family_of_which_too_few_are_whole_says_nothing():
    whole = [
        Episode(0, 1.0, 3, "terminated", True, {"room": np.zeros((4, 1), int)}) for _ in range(4)
    ]
    failed = Episode(0, 0.0, 1, "error", None, {}, "broken")
    numbers = Polychromic(vines=5)._of_family([*whole, failed], np.random.default_rng(0), [])
    assert np.isnan(numbers).all()


def test_the_number_lies_on_the_first_steps_of_its_vine_and_gae_on_the_rest():
    mask = torch.tensor([[True] * 8, [True] * 3 + [False] * 5, [True] * 8])
    reward, value = torch.randn(3, 8), torch.randn(3, 8)
    over = torch.tensor([0.3, 0.0, 0.1])
    number = torch.tensor([2.0, -1.0, float("nan")])
    seen = Seen(mask, reward, value, over=over, number=number)
    gae = GAE(0.9, 0.8, whiten=False)
    plain, target = gae(seen)
    adv, same = Overlay(gae, 5)(seen)
    assert adv[0].tolist() == pytest.approx([2.0] * 6 + plain[0, 6:].tolist())
    assert adv[1].tolist() == pytest.approx([-1.0] * 3 + [0.0] * 5), "shorter than the window"
    assert torch.equal(adv[2], plain[2])
    assert torch.equal(same, target)
    one = Seen(mask[:1, :1], reward[:1, :1], value[:1, :1], over=over[:1], number=number[:1])
    assert Overlay(gae, 5)(one)[0].tolist() == [[2.0]], "of a single step"


def test_whitening_keeps_the_two_kinds_apart():
    mask = torch.ones(6, 30, dtype=torch.bool)
    number = torch.tensor([0.1, -0.1, 0.2, -0.2, float("nan"), float("nan")])
    seen = Seen(
        mask, 10 * torch.randn(6, 30), torch.randn(6, 30), over=torch.zeros(6), number=number
    )
    adv, _ = Overlay(GAE(1.0, 0.95, whiten=False), 5, whiten=True)(seen)
    own, rest = adv[:4, :6], torch.cat([adv[:4, 6:].flatten(), adv[4:].flatten()])
    assert float(own.std()) == pytest.approx(1, abs=1e-3)
    assert float(rest.std()) == pytest.approx(1, abs=1e-3)
    assert float(rest.mean()) == pytest.approx(0, abs=1e-4)
    assert (own.sign() == number[:4].sign()[:, None]).all()


def slow_vtrace(reward, value, bootstrap, ratio, gamma, lam, rho, c):
    steps = len(reward)
    values = [*value, bootstrap]
    target = []
    for s in range(steps):
        total, product = value[s], 1.0
        for t in range(s, steps):
            delta = min(rho, ratio[t]) * (reward[t] + gamma * values[t + 1] - values[t])
            total += gamma ** (t - s) * product * delta
            product *= lam * min(c, ratio[t])
        target.append(total)
    after = [*target[1:], bootstrap]
    adv = [min(rho, ratio[s]) * (reward[s] + gamma * after[s] - value[s]) for s in range(steps)]
    return adv, target


@pytest.mark.parametrize(("lam", "rho", "c"), [(1.0, 1.0, 1.0), (0.9, 2.0, 0.7)])
def test_vtrace_is_its_sum(lam, rho, c):
    rng = np.random.default_rng(0)
    reward, value, gap = (torch.from_numpy(rng.normal(size=(2, 6))) for _ in range(3))
    bootstrap, mask = (
        torch.tensor([0.4, 0.0], dtype=torch.float64),
        torch.ones(2, 6, dtype=torch.bool),
    )
    mask[1, 4:] = False
    adv, target = vtrace(reward, value, bootstrap, gap, mask, gamma=0.95, lam=lam, rho=rho, c=c)
    for row, length in ((0, 6), (1, 4)):
        expected = slow_vtrace(
            *(x[row, :length].tolist() for x in (reward, value)), float(bootstrap[row]),
            [math.exp(g) for g in gap[row, :length].tolist()], 0.95, lam, rho, c,
        )  # fmt: skip
        assert adv[row, :length].tolist() == pytest.approx(expected[0])
        assert target[row, :length].tolist() == pytest.approx(expected[1])
    assert not adv[1, 4:].any()


def test_vtrace_of_fresh_data_has_the_targets_of_gae():
    mask = torch.ones(3, 7, dtype=torch.bool)
    reward, value, over = torch.randn(3, 7), torch.randn(3, 7), torch.randn(3)
    logp = torch.randn(3, 7)
    seen = Seen(mask, reward, value, old_logp=logp, over=over, sample_logp=logp)
    _, ours = VTrace(0.9, 0.8)(seen)
    _, theirs = GAE(0.9, 0.8, whiten=False)(seen)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_what_is_seldom_done_is_worth_more():
    visits = Visits()
    obs = {"observation": torch.tensor([[1.0], [1.0], [2.0]])}
    action = torch.tensor([[0.0], [0.0], [0.0]])
    assert visits.bonus(obs, action).tolist() == pytest.approx([2**-0.5, 2**-0.5, 1.0])
    assert visits.bonus(obs, action + 1).tolist() == pytest.approx([2**-0.5, 2**-0.5, 1.0])
    assert visits.bonus(obs, action)[2] == pytest.approx(2**-0.5)
    assert len(visits.counts) == 4


@pytest.mark.parametrize(
    "changes, said",
    [
        (["env={name: gym, id: CartPole-v1, snapshots: none}"], "env.snapshots is none"),
        (["env={name: gym, id: CartPole-v1}"], "trace 'room'.*records: none"),
        (["algo.diversity={name: states, trace: positon}"], "Did you mean 'position'"),
        (["env={name: gym, id: CartPole-v1, snapshots: none}", "algo.rollout_states=0"], None),
        (["algo.diversity=vendi"], None),
        ([], None),
    ],
)
def test_what_vines_need_is_known_before_a_run(changes, said):
    config = Path(__file__).parents[2] / "configs" / "rooms" / "polychromic.yaml"
    cfg = load_config(config, changes)
    algo = registry.build("algo", cfg.algo)
    if said is None:
        algo.suits(cfg)
        return
    with pytest.raises(ConfigError, match=said):
        algo.suits(cfg)
