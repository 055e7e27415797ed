"""The environments of a block, stepped one after the other: Gymnasium's vector environment, but leaner.

Gymnasium's own `step` stacks a list per array and gathers infos that nobody reads; for a simulator that
takes 20 microseconds a step that is the larger part. One alarm watches a whole round, not two system calls
a step; it begins anew where a step took more than a hundredth of what it may. Whether numbers lie within
their space is asked once a round, of all of them; who is to blame, only where the answer is no.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlft.sampling.guarded import Alarm, Guarded
from rlft.sampling.within import numbers_within


class Abreast(SyncVectorEnv):
    """makes: one function for each environment; timeout: seconds that a step may take. The observations
    that it returns are overwritten by the next step."""

    def __init__(self, makes: Sequence[Callable[[], Guarded]], timeout: float) -> None:
        super().__init__(makes, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        self.guarded: list[Any] = list(self.envs)
        self._alarm, self._slow = Alarm(timeout), timeout / 100
        self._numbers_within = numbers_within(self.single_observation_space)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """(observations, no infos) after those of `options["reset_mask"]` began what they were told to."""
        del seed  # each environment was told
        for i in np.flatnonzero(options["reset_mask"]).tolist():
            self._write(i, self.guarded[i].reset()[0])
        return self._observations, {}

    def step(self, actions: Any) -> Any:
        """(observations, rewards float64 `[M]`, terminated, truncated bool `[M]`, no infos)."""
        rewards: Any = self._rewards
        terminated, truncated = self._terminations, self._truncations
        with self._alarm:
            began = time.monotonic()
            for i, env in enumerate(self.guarded):
                shown, rewards[i], terminated[i], over = env.advance(actions[i])
                truncated[i] = over
                self._write(i, shown)  # at once: what it is shown in may be another's next
                now = time.monotonic()
                if over or now - began > self._slow:
                    self._alarm.start()  # a failure may have stopped it
                    began = now
        if not self._numbers_within(self._observations):
            for i, env in enumerate(self.guarded):
                row = self._row(i)  # what it showed, whatever became of that array since
                if not self._numbers_within(row):
                    env.refuse(row)
                    rewards[i], terminated[i], truncated[i] = 0.0, False, env.running is not None
                    self._write(i, env.shown)
        return self._observations, rewards.copy(), terminated.copy(), truncated.copy(), {}

    def _row(self, i: int) -> Any:
        out: Any = self._observations
        if isinstance(out, dict):
            return {name: array[i].copy() for name, array in out.items()}
        return out[i].copy()

    def _write(self, i: int, shown: Any) -> None:
        """Puts what one environment shows into the block's arrays."""
        out: Any = self._observations
        if isinstance(out, dict):
            for name, array in out.items():
                array[i] = shown[name]
        else:
            out[i] = shown
