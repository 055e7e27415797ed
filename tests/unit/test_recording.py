"""`rlft record`: episodes of a policy as demonstrations."""

import numpy as np
import pytest

from rlft import registry
from rlft.cloning import strips_of
from rlft.config import parse_config
from rlft.demonstrations import read
from rlft.errors import ConfigError, DataError
from rlft.evaluate import Subject
from rlft.policy.actor_critic import new_policy
from rlft.recording import record

ENV = {"name": "minigrid", "id": "MiniGrid-Empty-5x5-v0", "max_steps": 30, "configurations": 3}


def subject(tmp_path, **changes):
    tree = {
        "name": "x",
        "steps": 1,
        "tasks_per_step": 1,
        "algo": {"name": "reinforce"},
        "env": ENV,
        "model": {"build": {"name": "mlp", "hidden": [8]}, "dtype": "float32"},
        **changes,
    }
    cfg = parse_config(tree, "x")
    one = registry.build("env", cfg.env).make()
    return Subject(cfg, new_policy({"name": "mlp", "hidden": [8]}, one, 0, tmp_path / "p"), "x")


def test_recorded_episodes_are_what_the_environment_did(tmp_path):
    said = []
    record(subject(tmp_path), tmp_path / "e.npz", episodes=7, greedy=False, say=said.append)
    recipe = registry.build("env", ENV)
    env = recipe.make()
    found = read(tmp_path / "e.npz", env.observation_space, env.action_space)
    assert len(found) == 7 and "7 episodes" in said[0] and "0 failed" in said[0]
    starts = [task.info["seed"] for task in recipe.train()]
    assert [d.seed for d in found] == [starts[i % 3] for i in range(7)]
    for demo in found:
        seen, _ = env.reset(seed=demo.seed)
        for expected, action, reward in zip(
            demo.observations, demo.actions, demo.rewards, strict=True
        ):
            assert np.array_equal(seen, expected)
            seen, got, terminated, truncated, _ = env.step(int(action))
            assert got == pytest.approx(reward)
        assert terminated == demo.terminated and (terminated or truncated)
    assert len(strips_of(str(tmp_path / "e.npz"), recipe)) == 7


def test_what_cannot_be_recorded_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected such a name"):
        record(subject(tmp_path), tmp_path / "e.txt", episodes=1, greedy=False, say=print)
    nobody = Subject(subject(tmp_path / "b").cfg, None, "a configuration")
    with pytest.raises(ConfigError, match="expected a trained policy that acts"):
        record(nobody, tmp_path / "e.npz", episodes=1, greedy=False, say=print)
    inside = subject(tmp_path / "c", env={"name": "conditioned", "of": ENV})
    with pytest.raises(ConfigError, match="stands inside another"):
        record(inside, tmp_path / "e.npz", episodes=1, greedy=False, say=print)
