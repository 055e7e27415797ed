"""Another environment whose observations say how much return is still wanted: for policies that learn
offline to reach it (Decision Transformer, arXiv 2106.01345).

    env: {name: conditioned, of: {name: minigrid, id: MiniGrid-DoorKey-5x5-v0}, target: 0.9}

Recordings are those of the environment inside; what was still to come is computed from their rewards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlft import registry
from rlft.errors import ConfigError

if TYPE_CHECKING:
    import gymnasium

    from rlft.demonstrations import Demonstration


@dataclass(frozen=True)
class Conditioned:
    """of: the environment, as `env` would name it; target: the return that is asked for at the start of
    an episode, less what was earned since.

    An observation is that of the environment, and `to_go` float32 `[1]`, `before`: the action before,
    or the number of actions at the start. Only for discrete actions.
    """

    of: dict[str, Any]
    target: float = 1.0

    def __hash__(self) -> int:
        return hash((json.dumps(self.of, sort_keys=True, default=str), self.target))

    @property
    def inner(self) -> Any:
        """The environment plug-in inside."""
        return registry.build("env", self.of)

    @property
    def traces(self) -> tuple[str, ...]:
        return tuple(getattr(self.inner, "traces", ()))

    @property
    def snapshots(self) -> str:
        return getattr(self.inner, "snapshots", "copy")

    @property
    def limit(self) -> Literal["cuts", "ends"]:
        return getattr(self.inner, "limit", "cuts")

    @property
    def solved_above(self) -> float | None:
        return getattr(self.inner, "solved_above", None)

    def train(self) -> Any:
        """Those of the environment inside."""
        return self.inner.train()

    def held_out(self) -> Any:
        """Those of the environment inside."""
        return self.inner.held_out()

    def make(self) -> gymnasium.Env:
        """One environment. Raises ConfigError: actions that are not discrete."""
        from gymnasium import spaces

        from envs.conditioned.wrapper import ToGo

        env = self.inner.make()
        if not isinstance(env.action_space, spaces.Discrete):
            raise ConfigError(
                f"env conditioned: {self.of.get('name')} has actions {env.action_space}, expected Discrete"
            )
        return ToGo(env, self.target)

    def conditioned(self, demo: Demonstration, actions: int) -> Demonstration:
        """A recording of the environment inside, as this one shows it. actions: how many there are."""
        from dataclasses import replace

        from envs.conditioned.wrapper import seen_as

        to_go = demo.rewards[::-1].cumsum()[::-1].astype(np.float32)
        before = np.concatenate([[actions], demo.actions.ravel()[:-1]])
        inner: Mapping[str, Any] | np.ndarray = demo.observations
        return replace(demo, observations=seen_as(inner, to_go[:, None], before))
