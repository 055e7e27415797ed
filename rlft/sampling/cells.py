"""The trace `cell`: which of many small boxes of the observation space an environment is in."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlft.errors import ConfigError


class Cells(gymnasium.Wrapper):
    """Adds `info["cell"]`, int64 `[d]`: the observation, flattened, in steps of `size`, rounded down.

    size: None takes whole numbers as they are, and raises ConfigError for any other observation. A
    Dict's entries are joined in the order of its keys.
    """

    snapshot_state = ()

    def __init__(self, env: gymnasium.Env, size: float | None) -> None:
        super().__init__(env)
        space = env.observation_space
        parts = space.values() if isinstance(space, spaces.Dict) else [space]
        if size is None and any(np.dtype(part.dtype).kind == "f" for part in parts):
            raise ConfigError(
                f"traces: [cell] of the observation {space!r:.100} needs cell_size, the width of a cell"
            )
        self._size = size

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return observation, {**info, "cell": self._cell(observation)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "cell": self._cell(observation)}

    def _cell(self, observation: Any) -> np.ndarray:
        parts = observation.values() if isinstance(observation, dict) else [observation]
        flat = np.concatenate([np.ravel(np.asarray(part)) for part in parts])
        if self._size is not None:
            flat = np.floor(np.asarray(flat, dtype=np.float64) / self._size)
        return flat.astype(np.int64)
