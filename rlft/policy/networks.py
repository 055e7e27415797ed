"""Networks for environments, picked by `model.build: {name: mlp, ...}`; their fields are YAML keys, and
named as the arguments of `ActorCritic` that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gymnasium import spaces
from pydantic import Field

from rlft.policy.actor_critic import ActorCritic
from rlft.policy.decision_transformer import DecisionTransformer

__all__ = ["CNN", "CNNGRU", "MLP", "DecisionTransformer"]

Activation = Literal["tanh", "relu", "gelu", "silu"]
Size = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class MLP:
    """Observations flat, fully connected layers. shared: one trunk for policy and value; normalise:
    numbers by their running mean and deviation; normalise_returns: the critic learns returns by theirs;
    log_std: where a Gaussian's deviations start."""

    hidden: Annotated[tuple[Size, ...], Field(min_length=1)] = (64, 64)
    activation: Activation = "tanh"
    shared: bool = False
    normalise: bool = False
    normalise_returns: bool = False
    log_std: float = 0.0

    def __call__(self, observations: spaces.Space, actions: spaces.Space) -> ActorCritic:
        *hidden, width = self.hidden
        return ActorCritic(
            observations, actions, **{**vars(self), "hidden": tuple(hidden), "width": width}
        )


@dataclass(frozen=True)
class CNN:
    """Images by convolutions, words by an embedding, the rest flat, then one layer. One trunk unless
    `shared` is false."""

    channels: tuple[Size, ...] = (16, 32, 64)
    width: Size = 128
    activation: Activation = "relu"
    shared: bool = True
    normalise: bool = False
    normalise_returns: bool = False
    log_std: float = 0.0

    def __call__(self, observations: spaces.Space, actions: spaces.Space) -> ActorCritic:
        return ActorCritic(observations, actions, **vars(self))


@dataclass(frozen=True)
class CNNGRU:
    """A `cnn` with a GRU of width `memory`: the policy of BabyAI, with its mission as words."""

    channels: tuple[Size, ...] = (16, 32, 64)
    width: Size = 128
    memory: Size = 128
    activation: Activation = "relu"
    normalise: bool = False
    normalise_returns: bool = False

    def __call__(self, observations: spaces.Space, actions: spaces.Space) -> ActorCritic:
        return ActorCritic(observations, actions, shared=True, **vars(self))
