"""Demonstrations as strips, so that what learns from episodes learns from them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from rlft.demonstrations import Demonstration, read
from rlft.policy.distributions import distribution_of
from rlft.policy.observed import as_arrays
from rlft.types import Strip


@functools.lru_cache(maxsize=4)
def strips_of(source: str, env: Any) -> list[Strip]:
    """The demonstrations of `source` for the environment plug-in `env`. Raises DataError."""
    one = env.make()
    try:
        width = distribution_of(one.action_space).width
        found = read(source, one.observation_space, one.action_space, getattr(env, "adapt", None))
        return [_strip(demo, one.action_space, width) for demo in found]
    finally:
        one.close()


def _strip(demo: Demonstration, space: spaces.Space, width: int) -> Strip:
    steps = len(demo)
    unknown = np.full(steps, np.nan, np.float32)
    obs: Mapping[str, np.ndarray] = as_arrays(demo.observations)
    return Strip(
        obs=obs,
        action=_as_policy(demo.actions, space),
        params=np.full((steps, width), np.nan, np.float32),
        logp=unknown,
        value=unknown,
        reward=demo.rewards,
        bootstrap=0.0,
        state=None,
        after={name: x[-1] for name, x in obs.items()},
    )


def _as_policy(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Actions as a policy has them, float32 `[T, A]`: choices count from 0."""
    flat = actions.reshape(len(actions), -1).astype(np.float32)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        flat = flat - np.asarray(space.start, np.float32)
    return flat
