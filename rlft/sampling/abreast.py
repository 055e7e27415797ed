"""The environments of a block, stepped one after the other: Gymnasium's vector environment, but leaner.

Gymnasium's own `step` stacks a list per array and gathers infos that nobody reads; for a simulator that
takes 20 microseconds a step that is the larger part. One alarm watches a whole round, not two system calls
a step; it begins anew where a step took more than a hundredth of what it may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlft.sampling.guarded import Alarm, Guarded


class Abreast(SyncVectorEnv):
    """makes: one function for each environment; timeout: seconds that a step may take. The observations
    that it returns are overwritten by the next step."""

    def __init__(self, makes: Sequence[Callable[[], Guarded]], timeout: float) -> None:
        super().__init__(makes, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        self.guarded: list[Any] = list(self.envs)
        self._alarm, self._slow = Alarm(timeout), timeout / 100

    def step(self, actions: Any) -> Any:
        """(observations, rewards float64 `[M]`, terminated, truncated bool `[M]`, no infos)."""
        rewards: Any = self._rewards
        seen: Any = self._env_obs
        terminated, truncated = self._terminations, self._truncations
        with self._alarm:
            began = time.monotonic()
            for i, env in enumerate(self.guarded):
                seen[i], rewards[i], terminated[i], truncated[i] = env.advance(actions[i])
                now = time.monotonic()
                if truncated[i] or now - began > self._slow:
                    self._alarm.start()  # a failure may have stopped it
                    began = now
        out: Any = self._observations
        if isinstance(out, dict):
            for name, array in out.items():
                for i, one in enumerate(seen):
                    array[i] = one[name]
        else:
            for i, one in enumerate(seen):
                out[i] = one
        return out, rewards.copy(), terminated.copy(), truncated.copy(), {}
