"""Which observation and action spaces of Gymnasium a policy can be made for. Imports gymnasium."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from rlft.errors import ConfigError

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of those"
ACTIONS = "Discrete, MultiDiscrete (of one axis) or Box"
_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space, what: str) -> None:
    """Raises ConfigError for a space that no policy is made for; `what` names the environment."""
    check_observation_space(observation_space, what)
    check_action_space(action_space, what)


def check_observation_space(space: spaces.Space, what: str) -> None:
    """Raises ConfigError unless `space` is one of OBSERVATIONS, with starts of 0."""
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]
    for name, part in parts:
        where = f"observation {name!r}" if name else "the observation"
        if not isinstance(part, _LEAVES):
            raise ConfigError(
                f"{what}: {where} has the space {_short(part)}; expected {OBSERVATIONS}. "
                f"{_advice(part)}"
            )
        if isinstance(part, spaces.Box) and not 0 < len(part.shape) <= 3:
            raise ConfigError(
                f"{what}: {where} is a Box of shape {part.shape}; expected 1 to 3 axes. Reshape it "
                f"with the wrapper ReshapeObservation"
            )
        _refuse_start(part, f"{what}: {where}")
    if not list(parts):
        raise ConfigError(f"{what}: the observation is an empty Dict; expected at least one entry")


def check_action_space(space: spaces.Space, what: str) -> None:
    """Raises ConfigError unless `space` is one of ACTIONS, with starts of 0."""
    fits = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.Box)
    if isinstance(space, spaces.MultiDiscrete | spaces.Box):
        fits = len(space.shape) == 1
    if isinstance(space, spaces.Box):
        fits = fits and space.dtype is not None and space.dtype.kind == "f"
    if not fits:
        raise ConfigError(
            f"{what}: the action space is {_short(space)}; expected {ACTIONS}. Translate actions with "
            f"a wrapper of your own (`wrappers: [my_wrapper.py:Class]`, e.g. a "
            f"gymnasium.ActionWrapper): bits as MultiDiscrete([2, 2, ...]), a choice of parts as "
            f"one Discrete, a table as one axis"
        )
    _refuse_start(space, f"{what}: the action")


def _refuse_start(space: spaces.Space, where: str) -> None:
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        raise ConfigError(
            f"{where} counts from {space.start}; expected from 0. Shift it with a wrapper of your own"
        )


def _advice(space: spaces.Space) -> str:
    if isinstance(space, spaces.Text) or space.dtype is str:
        return (
            "Turn text into numbers with a wrapper of your own (`wrappers: [my_wrapper.py:Class]`)"
        )
    if space.is_np_flattenable:
        return "Set `observation: flat`, which makes one vector of it"
    return "Make an array of it with a wrapper of your own (`wrappers: [my_wrapper.py:Class]`)"


def _short(space: Any) -> str:
    text = repr(space)
    return text if len(text) <= 120 else f"{type(space).__name__} ({text[:100]}...)"
