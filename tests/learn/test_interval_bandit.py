"""The interval bandit of benchmarks/interval_bandit.py: its answer is known, so learning can be seen."""

import importlib.util
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks/interval_bandit.py"


@pytest.fixture(scope="module")
def bandit():
    spec = importlib.util.spec_from_file_location("interval_bandit", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_seed_hides_one_arm(bandit):
    iou = bandit.ious(5)
    assert torch.equal((iou == 1).sum(1), torch.ones(5, dtype=torch.int64))
    assert ((iou >= bandit.ENOUGH).sum(1) < 40).all(), "a guess is seldom right"
    arms = iou.reshape(5, bandit.SIDE, bandit.SIDE)
    assert not arms.tril().any(), "an interval that does not end after its start earns nothing"


@pytest.mark.parametrize("name", ["naive mixing", "downscale", "anchor", "shape"])
def test_ground_truth_in_the_group_is_learnt_by_every_seed(bandit, name):
    curve = bandit.learn(name, bandit.ious(3), samples=3000, lr=0.1, points=2)
    assert (curve[0] < 0.1).all()
    assert (curve[-1] > 0.9).all()


def test_without_it_as_many_draws_are_not_enough(bandit):
    curve = bandit.learn("GRPO", bandit.ious(3), samples=3000, lr=0.1, points=2)
    assert (curve[-1] < 0.9).all()
