"""What `conditioned` puts around an environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlft.policy.observed import WHOLE


class ToGo(gymnasium.Wrapper):
    """Adds to observations what return is still wanted, and the action before."""

    snapshot_state = ("_to_go", "_before")

    def __init__(self, env: gymnasium.Env, target: float) -> None:
        super().__init__(env)
        self._target, self._to_go = float(target), float(target)
        assert isinstance(env.action_space, spaces.Discrete)
        self._none = self._before = int(env.action_space.n)
        inner = env.observation_space
        parts = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {WHOLE: inner}
        self.observation_space = spaces.Dict(
            {
                **parts,
                "to_go": spaces.Box(-np.inf, np.inf, (1,), np.float32),
                "before": spaces.Discrete(self._none + 1),
            }
        )

    def reset(self, **keys: Any) -> Any:
        observation, info = self.env.reset(**keys)
        self._to_go, self._before = self._target, self._none
        return self._seen(observation), info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._to_go -= float(reward)
        self._before = int(action)
        return self._seen(observation), reward, terminated, truncated, info

    def _seen(self, observation: Any) -> dict[str, Any]:
        to_go = np.array([self._to_go], np.float32)
        return seen_as(observation, to_go, np.int64(self._before))


def seen_as(observation: Any, to_go: Any, before: Any) -> dict[str, Any]:
    """An observation, or an episode of them, with what is added."""
    parts = dict(observation) if isinstance(observation, Mapping) else {WHOLE: observation}
    return {**parts, "to_go": to_go, "before": before}
