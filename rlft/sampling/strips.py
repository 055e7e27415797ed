"""What was seen and done in environments, written down as strips.

`Record` is of a fixed number of steps of M environments, `Line` of one episode of one environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlft.types import End, Episode, Strip


@dataclass(frozen=True, slots=True)
class Seen:
    """What the policy is to act on: observations `[M, ...]` by name, states `[M, H]` or None."""

    obs: Mapping[str, np.ndarray]
    state: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Acted:
    """Its answer: params `[M, D]`, value `[M]`, next state `[M, H]` or None. value: None of a critic that
    shares nothing with the policy; it is asked afterwards, of many steps at once."""

    params: np.ndarray
    value: np.ndarray | None
    state: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What such a critic is to judge: observations `[N, ...]` by name. Its answer: float32 `[N]`."""

    obs: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Choice:
    """How actions are chosen from parameters. choose: (params, noise or None for the mode) -> float32
    `[M, A]`; noise: (generator, count) -> float32 `[count, ...]`; logp: (params, action) -> `[...]`;
    state_size: numbers of a recurrent state; to_env: float32 `[M, A]` -> what the environments take."""

    choose: Callable[[np.ndarray, np.ndarray | None], np.ndarray]
    noise: Callable[[np.random.Generator, int], np.ndarray]
    logp: Callable[[np.ndarray, np.ndarray], np.ndarray]
    state_size: int
    to_env: Callable[[np.ndarray], np.ndarray]


@dataclass(slots=True)
class Piece:
    """A strip and what the driver learns of it."""

    strip: Strip
    slot: int
    end: End
    episode: Episode | None


class Record:
    """What M environments did in a fixed number of steps, written into arrays `[T, M, ...]`."""

    def __init__(self, size: int, steps: int) -> None:
        self._size, self.steps = size, steps
        self._arrays: dict[str, np.ndarray] = {}
        self._obs: dict[str, np.ndarray] = {}

    def see(self, t: int, seen: Seen) -> None:
        for name, x in seen.obs.items():
            if name not in self._obs:
                self._obs[name] = np.empty((self.steps, *x.shape), x.dtype)
            self._obs[name][t] = x
        if seen.state is not None:
            self._put("state", t, seen.state)

    def act(self, t: int, action: np.ndarray, acted: Acted, reward: np.ndarray) -> None:
        self._put("action", t, action)
        self._put("params", t, acted.params)
        self._put("reward", t, reward)
        if acted.value is not None:
            self._put("value", t, acted.value)

    def _put(self, name: str, t: int, x: np.ndarray) -> None:
        if name not in self._arrays:
            self._arrays[name] = np.empty((self.steps, *x.shape), np.float32)
        self._arrays[name][t] = x

    def judged(self, after: Sequence[Mapping[str, np.ndarray]]) -> Judged:
        """All steps' observations, then these: what a critic apart is to be asked."""
        return Judged(
            {
                name: np.concatenate(
                    [x.reshape(-1, *x.shape[2:]), np.stack([a[name] for a in after])]
                )
                for name, x in self._obs.items()
            }
        )

    def valued(self, value: np.ndarray) -> None:
        """Takes its answer of all steps, `[T M]`."""
        self._arrays["value"] = value.reshape(self.steps, self._size)

    def weigh(self, choice: Choice) -> None:
        """Takes the log-probs of all steps at once, for the strips that are made afterwards."""
        self._arrays["logp"] = choice.logp(self._arrays["params"], self._arrays["action"])

    def seen(self, t: int, slot: int) -> dict[str, np.ndarray]:
        return {name: x[t, slot].copy() for name, x in self._obs.items()}

    def value(self, t: int, slot: int) -> float:
        return float(self._arrays["value"][t, slot])

    def strip(self, slot: int, first: int, upto: int, bootstrap: float, after: Any) -> Strip:
        a = {name: x[first:upto, slot].copy() for name, x in self._arrays.items()}
        return Strip(
            {name: x[first:upto, slot].copy() for name, x in self._obs.items()},
            a["action"],
            a["params"],
            a["logp"],
            a["value"],
            a["reward"],
            bootstrap,
            self._arrays["state"][first, slot].copy() if "state" in a else None,
            after,
        )


class Line:
    """What one environment did in one episode. index: of its start; seed: of its noise; keep: whether
    more than the last step is kept."""

    def __init__(self, index: int, seed: int, keep: bool = True) -> None:
        self.index, self._keep = index, keep
        self._rng = np.random.default_rng(seed)
        self._ahead: list[np.ndarray] = []
        self._obs: list[dict[str, np.ndarray]] = []
        self._state: list[np.ndarray | None] = []
        self._acts: list[tuple[Any, ...]] = []

    def see(self, seen: Seen, slot: int) -> None:
        if not self._keep:
            self._obs, self._state, self._acts = [], [], []
        self._obs.append({name: x[slot].copy() for name, x in seen.obs.items()})
        self._state.append(None if seen.state is None else seen.state[slot].copy())

    def act(self, action: np.ndarray, acted: Acted, slot: int, reward: float) -> None:
        value = 0.0 if acted.value is None else float(acted.value[slot])
        self._acts.append((action.copy(), acted.params[slot].copy(), value, float(reward)))

    def judged(self, after: Mapping[str, np.ndarray]) -> Judged:
        """The episode's observations, then its last: what a critic apart is to be asked."""
        seen = [*self._obs, after]
        return Judged({name: np.stack([o[name] for o in seen]) for name in after})

    def valued(self, value: np.ndarray) -> None:
        """Takes its answer of all steps, `[T]`."""
        self._acts = [
            (action, params, v, reward)
            for (action, params, _, reward), v in zip(self._acts, value.tolist(), strict=True)
        ]

    def seen(self) -> dict[str, np.ndarray]:
        """What the last action was taken on."""
        return self._obs[-1]

    def worth(self) -> float:
        """The value of that."""
        return float(self._acts[-1][2])

    def noise(self, choice: Choice) -> np.ndarray:
        """The noise of the next action; drawn for many at once."""
        if not self._ahead:
            self._ahead = list(choice.noise(self._rng, 32))[::-1]
        return self._ahead.pop()

    def states(self) -> np.ndarray | None:
        return None if self._state[0] is None else np.stack(self._state)  # type: ignore[arg-type]

    def strip(self, bootstrap: float, after: Any, choice: Choice, *, failed: bool) -> Strip:
        obs, acts = self._obs, self._acts
        if failed or not self._keep:  # a step that failed taught nothing
            obs, acts = obs[:-1], acts[:-1]
        action, params, value, reward = (
            np.array([act[i] for act in acts], np.float32) for i in range(4)
        )
        if not acts:
            action, params = (np.zeros((0, len(self._acts[0][i])), np.float32) for i in (0, 1))
        return Strip(
            {name: np.stack([o[name] for o in obs]) if obs else x[None][:0]
             for name, x in self._obs[0].items()},
            action,
            params,
            choice.logp(params, action),
            value,
            reward,
            bootstrap,
            self._state[0],
            after,
        )  # fmt: skip
