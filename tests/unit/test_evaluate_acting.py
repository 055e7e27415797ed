"""`rlft eval` of a policy that acts, in this process: what counts as a success, and steps that hang."""

import time

import numpy as np
import pytest

from rlft import registry
from rlft.config import parse_config
from rlft.evaluate import Subject
from rlft.evaluate_acting import evaluate_acting
from rlft.policy.actor_critic import new_policy
from rlft.sampling.guarded import Alarm

WORLD = """
import time

import gymnasium
import numpy as np


class World(gymnasium.Env):
    \"\"\"Three steps of reward 10. Even seeds are won, and only a win is spoken of.\"\"\"

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, says=True, hangs=False):
        self.says, self.hangs = says, hangs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.left = seed, 3
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if self.hangs:
            time.sleep(30)
        self.left -= 1
        done = self.left == 0
        info = {"success": True} if self.says and done and self.seed % 2 == 0 else {}
        return np.zeros(2, np.float32), 10.0, done, False, info
"""


def evaluated(tmp_path, threshold=1.0, **kwargs):
    (tmp_path / "world.py").write_text(WORLD)
    env = {"name": "gym", "id": f"{tmp_path}/world.py:World", "kwargs": kwargs, "held_out_size": 8}
    model = {"build": {"name": "mlp"}, "dtype": "float32"}
    keys = {"steps": 1, "tasks_per_step": 1, "algo": "control_ppo", "env": env, "model": model}
    cfg = parse_config({"name": "e", **keys, "runner": {"step_timeout": 0.2}}, "e")
    made = registry.build("env", cfg.env).make()
    folder = new_policy({"name": "mlp"}, made, 0, tmp_path / "policy")
    how = {"samples": 2, "ks": [1, 2], "threshold": threshold, "greedy": False, "say": print}
    return evaluate_acting(Subject(cfg, folder, "e"), **how)


def test_who_speaks_of_one_success_means_that_the_others_failed(tmp_path):
    result, episodes = evaluated(tmp_path)
    won = np.mean([row[0].seed % 2 == 0 for row in episodes])
    assert 0 < won < 1, "some are won and some are not"
    assert result.success.value == result.coverage.value == pytest.approx(won)
    assert result.ret.value == 30


@pytest.mark.parametrize("threshold, share", [(30.0, 1.0), (30.5, 0.0)])
def test_where_nobody_speaks_of_success_the_return_decides(tmp_path, threshold, share):
    result, _ = evaluated(tmp_path, threshold, says=False)
    assert result.success.value == share


def test_a_step_that_hangs_ends_its_episode_and_no_alarm_is_left(tmp_path):
    began = time.monotonic()
    result, episodes = evaluated(tmp_path, hangs=True)
    assert time.monotonic() - began < 25
    assert {e.end for row in episodes for e in row} == {"error"} and result.success.value == 0
    assert "runner.step_timeout" in episodes[0][0].error
    assert not Alarm.installed()
