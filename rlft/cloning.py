"""Demonstrations as strips, so that what learns from episodes learns from them: all of them at once, or
windows of recordings that are too many to hold."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from rlft.demonstrations import Demonstration, read
from rlft.policy.distributions import distribution_of
from rlft.policy.observed import as_arrays
from rlft.recordings import Recordings, Streams, Window, stretches
from rlft.types import Strip

RECORDED = 20_000
"""Steps that `strips_of` takes of recordings that are too many to hold."""
_STRETCH = 256


def strips_of(source: str, env: Any, most: int = RECORDED) -> list[Strip]:
    """The demonstrations of `source` for the environment plug-in `env`: whole episodes, or of recordings
    that are read by window about `most` steps, in stretches of 256 spread evenly over the games. Raises
    DataError."""
    return _whole(source, env) if library_of(source, env) is None else _spread(source, env, most)


def demonstrations_of(source: str, env: Any) -> tuple[list[Demonstration], spaces.Space]:
    """What a file that is read whole holds for `env`, as it was recorded, and the space of its actions."""
    recorded = getattr(env, "inner", env)  # of an environment inside another
    one = recorded.make()
    try:
        adapt = getattr(recorded, "adapt", None)
        return read(source, one.observation_space, one.action_space, adapt), one.action_space
    finally:
        one.close()


@functools.lru_cache(maxsize=4)
def _whole(source: str, env: Any) -> list[Strip]:
    found, actions = demonstrations_of(source, env)
    width = distribution_of(actions).width
    if hasattr(env, "conditioned"):
        found = [env.conditioned(demo, width) for demo in found]
    return [_strip(demo, actions, width) for demo in found]


@functools.lru_cache(maxsize=4)
def _spread(source: str, env: Any, most: int) -> list[Strip]:
    library = library_of(source, env)
    assert library is not None
    games = range(len(library.recordings.names))
    return [library.strip(w) for w in stretches(library.recordings, games, most, _STRETCH)]


class Library:
    """Recordings of an environment as strips, window by window."""

    def __init__(self, recordings: Recordings, space: spaces.Space) -> None:
        self.recordings, self._space = recordings, space
        self._width = distribution_of(space).width

    def strip(self, window: Window) -> Strip:
        """Raises DataError: what is recorded there is damaged."""
        demo = self.recordings.read(window.game, window.first, window.last)
        return _strip(demo, self._space, self._width, EMPTY if window.fresh else None)

    def windows(
        self, streams: Streams, num: int, first: int, minibatches: int
    ) -> tuple[list[Strip], np.ndarray, np.ndarray]:
        """Windows `first` to `first + minibatches - 1` of each of `num` readers: (strips, the reader of
        each, the minibatch of each)."""
        self.recordings.keep(num)
        places = [(m, s) for m in range(minibatches) for s in range(num)]
        windows = [streams.at(s, first + m) for m, s in places]
        strips = [
            replace(self.strip(w), slot=s, continues=not w.fresh)
            for (_, s), w in zip(places, windows, strict=True)
        ]
        minibatch, stream = np.array(places).T
        return strips, stream, minibatch


EMPTY = np.zeros(0, np.float32)
"""The state of a strip that begins with nothing in memory, whatever its reader had before."""


@functools.lru_cache(maxsize=2)
def library_of(source: str, env: Any) -> Library | None:
    """The recordings of `source` for the environment plug-in `env`; None: it has none of its own, or the
    file is one that is read whole. Raises DataError."""
    opened = env.recordings(source) if hasattr(env, "recordings") else None
    if opened is None:
        return None
    one = env.make()
    one.close()
    return Library(opened, one.action_space)


def _strip(
    demo: Demonstration, space: spaces.Space, width: int, state: np.ndarray | None = None
) -> Strip:
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
        state=state,
        after={name: x[-1] for name, x in obs.items()},
    )


def _as_policy(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Actions as a policy has them, float32 `[T, A]`: choices count from 0."""
    flat = actions.reshape(len(actions), -1).astype(np.float32)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        flat = flat - np.asarray(space.start, np.float32)
    return flat
