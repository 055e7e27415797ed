"""Two toys in which fine-tuning forgets, with the framework's own losses."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.apple_retrieval import AppleRetrieval
from rlft.errors import ConfigError

FILE = Path(__file__).resolve().parents[2] / "benchmarks/forgetting_toys.py"
spec = importlib.util.spec_from_file_location("forgetting_toys", FILE)
toys = importlib.util.module_from_spec(spec)
sys.modules["forgetting_toys"] = toys
spec.loader.exec_module(toys)


def test_only_cloning_keeps_the_far_phase_and_learns_the_close_one():
    """The margins are those of 20 seeds. FAR is learnt again, so its least value counts."""
    seeds = 3
    none, cloned = (toys.course(toys.Apple(*arm), seeds) for arm in (("none", 0.0), ("bc", 5.0)))
    started = toys.course(toys.Apple("ks", 5.0), seeds)
    alike = toys.course(toys.Apple(c=1.0), seeds)
    assert cloned.far_min.mean() - none.far_min.mean() > 0.2
    assert cloned.success.mean() > 0.9
    assert started.success.mean() < 0.1
    assert alike.far_min.mean() > 0.95


def test_two_states_have_a_bad_local_optimum_that_gradient_ascent_finds():
    assert toys.climbed(1e-3, most=100_000) == pytest.approx(1 / 9, abs=1e-3)
    assert toys.two_states(1 / 9) == pytest.approx(20 / 9)
    assert toys.two_states(1.0) == pytest.approx(10)
    assert toys.two_states(0.08, gap="cloning") == pytest.approx(9.93, abs=0.005)
    assert toys.two_states(0.5, gap="cloning") == pytest.approx(9.898, abs=0.005)
    assert toys.two_states(1.0, gap="cloning") == pytest.approx(10)


def test_the_environment_is_the_same_walk():
    recipe = AppleRetrieval(distance=3, max_steps=7)
    env = recipe.make()
    seen, _ = env.reset(seed=0)
    assert seen.tolist() == pytest.approx([-0.3])
    told = [env.step(a) for a in (0, 1, 1, 1, 0, 0, 0)]
    assert [t[1] for t in told] == [-1, 1, 1, 1, 1, 1, 1]
    assert [int(t[4]["stage"][0]) for t in told] == [0, 0, 0, 1, 1, 1, 2]
    assert [t[2] for t in told] == [False] * 6 + [True]
    assert told[-1][4]["success"]
    seen, _ = AppleRetrieval(start="back").make().reset()
    assert np.sign(seen[0]) == 1
    with pytest.raises(ConfigError, match="too few for a way of 60 steps"):
        AppleRetrieval(max_steps=59)
