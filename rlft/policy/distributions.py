"""Distributions over the actions of an environment, as functions of a vector of parameters `[..., D]`.

Sampling takes its randomness as an array, so that whoever holds the key decides what is drawn: an action
is a function of parameters and noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from gymnasium import spaces

from rlft.errors import ConfigError


class Distribution(Protocol):
    """width: D, the number of parameters; actions: numbers an action consists of.

    Actions are float32 `[..., actions]`, also those that are whole numbers.
    """

    width: int
    actions: int

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """What `sample` takes, float32 `[count, ...]`."""
        ...

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor: ...

    def mode(self, params: torch.Tensor) -> torch.Tensor: ...

    def logp(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor: ...

    def entropy(self, params: torch.Tensor) -> torch.Tensor: ...

    def kl(self, params: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`KL(params || other)` in nats, exact."""
        ...


@dataclass(frozen=True, slots=True)
class Categoricals:
    """Independent choices among `nvec[i]` alternatives each; parameters are their logits, joined."""

    nvec: tuple[int, ...]

    @property
    def width(self) -> int:
        return sum(self.nvec)

    @property
    def actions(self) -> int:
        return len(self.nvec)

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Gumbel: the largest of logits plus it is a sample of the categorical."""
        x = rng.random((count, self.width))
        np.maximum(x, 1e-12, out=x)
        np.minimum(x, 1 - 1e-12, out=x)
        for _ in range(2):
            np.log(x, out=x)
            np.negative(x, out=x)
        return x.astype(np.float32)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.mode(params + noise)

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        return torch.stack([p.argmax(-1) for p in self._parts(params)], -1).float()

    def logp(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        chosen = [
            p.log_softmax(-1).gather(-1, action[..., i, None].long()).squeeze(-1)
            for i, p in enumerate(self._parts(params))
        ]
        return chosen[0] if len(chosen) == 1 else torch.stack(chosen).sum(0)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        logs = [p.log_softmax(-1) for p in self._parts(params)]
        return torch.stack([-(x.exp() * x).sum(-1) for x in logs]).sum(0)

    def kl(self, params: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        pairs = zip(self._parts(params), self._parts(other), strict=True)
        logs = [(p.log_softmax(-1), q.log_softmax(-1)) for p, q in pairs]
        return torch.stack([(p.exp() * (p - q)).sum(-1) for p, q in logs]).sum(0)

    def _parts(self, params: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return params.split(self.nvec, -1) if len(self.nvec) > 1 else (params,)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A normal with diagonal covariance; parameters are means, then logarithms of deviations.

    Samples are not bounded; whoever steps the environment clips them, and their log-prob is that of
    the sample before (as CleanRL and Stable-Baselines3 do).
    """

    actions: int

    @property
    def width(self) -> int:
        return 2 * self.actions

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.standard_normal((count, self.actions), np.float32)

    def sample(self, params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * noise

    def mode(self, params: torch.Tensor) -> torch.Tensor:
        return params.chunk(2, -1)[0]

    def logp(self, params: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        mean, log_std = params.chunk(2, -1)
        z = (action - mean) * (-log_std).exp()
        return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: torch.Tensor) -> torch.Tensor:
        _, log_std = params.chunk(2, -1)
        return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, params: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        (mean, log_std), (mean_q, log_std_q) = params.chunk(2, -1), other.chunk(2, -1)
        ratio = (2 * (log_std - log_std_q)).exp()
        distance = (mean - mean_q) ** 2 * (-2 * log_std_q).exp()
        return (0.5 * (ratio + distance - 1) + log_std_q - log_std).sum(-1)


def distribution_of(space: spaces.Space) -> Categoricals | Gaussian:
    """The distribution over an action space. Raises ConfigError for a kind that has none here."""
    if isinstance(space, spaces.Discrete):
        return Categoricals((int(space.n),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return Categoricals(tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return Gaussian(int(space.shape[0]))
    raise ConfigError(
        f"actions of kind {space} are not supported; supported are Discrete, MultiDiscrete [K] and "
        f"Box [K]. Wrap the environment with gymnasium.wrappers.TransformAction."
    )
