"""Evolution strategies end to end on functions with known answers."""

import numpy as np
import pytest

from algos.es import ES
from benchmarks.es_control import train
from rlft.credit.evolution import member_rewards, shaped
from rlft.learning.noise import Drawing, Noise, NoiseStep, noise, pack, take_step
from rlft.types import Group, Outcome, RowRef, Task, Trajectory


def member(task, index, reward):
    outcome = Outcome("error", None) if reward is None else Outcome("value", reward)
    facts = ("policy", "", 1, 1, (0, 0), False, RowRef(None, 0), outcome)
    return Trajectory(f"{task}.{index}", task, *facts, member=index)


def test_a_members_reward_is_the_mean_over_answers_however_they_were_split():  # I10
    rng = np.random.default_rng(0)
    table = rng.normal(size=(7, 3))  # tasks, members
    groups = [
        Group(Task(f"t{t}", ""), tuple(member(f"t{t}", i, float(r)) for i, r in enumerate(row)))
        for t, row in enumerate(table)
    ]
    whole = member_rewards(groups, 3)
    assert whole == pytest.approx(list(table.mean(axis=0)))
    chunks = [groups[:3], groups[3:6], groups[6:]]  # the last one is smaller
    sizes = np.array([3, 3, 1])
    means = np.array([member_rewards(chunk, 3) for chunk in chunks])
    assert list((sizes @ means) / 7) == pytest.approx(whole), "weighted by size"
    assert list(means.mean(axis=0)) != pytest.approx(whole), "and not by chunk"


def test_a_task_that_failed_for_all_is_left_out_and_a_member_that_failed_alone_too():
    groups = [
        Group(Task("a", ""), (member("a", 0, 1.0), member("a", 1, 2.0), member("a", 2, 4.0))),
        Group(Task("b", ""), tuple(member("b", i, None) for i in range(3))),
        Group(Task("c", ""), (member("c", 0, 3.0), member("c", 2, 0.0))),
    ]
    assert member_rewards(groups, 3) == [2.0, None, 2.0]
    assert member_rewards([], 2) == [None, None]


def test_z_scores_have_mean_0_and_deviation_1():  # I5
    z = shaped([3.0, -1.0, 10.0, 4.5], "zscore")
    assert abs(z.mean()) < 1e-12 and z.std() == pytest.approx(1)
    assert not shaped([2.5] * 6, "zscore").any() and not shaped([2.5] * 6, "ranks").any()


def test_centred_ranks_share_ties():
    assert shaped([10.0, -3.0, 10.0, 0.0, 99.0], "ranks").tolist() == [
        0.125,
        -0.5,
        0.125,
        -0.25,
        0.5,
    ]


def test_on_a_linear_reward_the_step_is_the_gradients_direction():  # I7
    d, population, alpha, sigma = 10, 100_000, 0.5, 1e-3
    gradient = np.random.default_rng(0).normal(size=d)
    held = {"w": np.zeros(d)}
    eps = np.stack([noise(i, "w", (d,)).numpy() for i in range(population)]).astype(np.float64)
    rewards = 7.0 + sigma * eps @ gradient
    z = shaped(rewards, "zscore")
    # In the order and arithmetic of the kernel, at the size of the invariant.
    import torch

    held = {"w": torch.zeros(d)}
    terms = [Noise(i, alpha / population * float(z[i])) for i in range(population)]
    length = take_step(held, NoiseStep(pack(terms), Drawing()), None)
    step = held["w"].double().numpy()
    cosine = step @ gradient / np.linalg.norm(step) / np.linalg.norm(gradient)
    assert cosine > 0.99
    assert abs(length / alpha - 1) < 0.05
    assert step == pytest.approx(alpha / population * z @ eps, abs=1e-5)


def test_es_balances_the_pole():  # I13
    algo = ES(16, 0.1, 0.1, antithetic=True)
    found = train("CartPole-v1", algo, hidden=0, generations=12, episodes=2, seed=0)
    assert found["before"] < 15
    assert found["after"] > 150


@pytest.mark.long
def test_es_finds_a_goal_that_is_seldom_met():
    algo = ES(16, 1.0, 1.0, antithetic=True, greedy=False)
    found = train("MiniGrid-Empty-5x5-v0", algo, hidden=0, generations=30, episodes=4, seed=0)
    assert found["before"] == 0
    assert found["after"] > 0.8
