"""Whether an observation is one of its space, cheaply enough to ask at every step.

Gymnasium's `contains` compares a Box with its bounds element by element, which for a small simulator
takes as long as a step. The same question here is two reductions where the bounds are the same
everywhere. Beyond it: numbers have to be finite, because a policy has no answer to others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

Check = Callable[[Any], bool]


def within(space: spaces.Space) -> Check:
    """A function that says whether an observation is one of `space`."""
    if isinstance(space, spaces.Dict):
        parts = {name: within(inner) for name, inner in space.spaces.items()}

        def whole(x: Any) -> bool:
            if not isinstance(x, Mapping) or len(x) != len(parts):
                return False
            return all(name in x and check(x[name]) for name, check in parts.items())

        return whole
    if isinstance(space, spaces.Box):
        return _box(space)
    if isinstance(space, spaces.Discrete):
        return _discrete(space)
    if isinstance(space, spaces.MultiDiscrete):
        return _multi_discrete(space)
    return space.contains


def _discrete(space: spaces.Discrete) -> Check:
    first, beyond = int(space.start), int(space.start) + int(space.n)

    def check(x: Any) -> bool:
        if type(x) is int or type(x) is np.int64:
            return bool(first <= x < beyond)
        return bool(space.contains(x))

    return check


def _multi_discrete(space: spaces.MultiDiscrete) -> Check:
    nvec, start = space.nvec, np.asarray(space.start)
    if not nvec.size or (nvec != nvec.flat[0]).any() or (start != start.flat[0]).any():
        return space.contains
    first, beyond = int(start.flat[0]), int(start.flat[0]) + int(nvec.flat[0])

    def check(x: Any) -> bool:
        if not isinstance(x, np.ndarray) or x.dtype != space.dtype or x.shape != nvec.shape:
            return bool(space.contains(x))
        return first <= int(x.min()) and int(x.max()) < beyond

    return check


def _box(space: spaces.Box) -> Check:
    shape, dtype = space.shape, space.dtype
    if not shape or not space.low.size or dtype is None or dtype.kind == "b":
        return space.contains
    low, high = space.low.flat[0], space.high.flat[0]
    uniform = bool((space.low == low).all() and (space.high == high).all())
    floating = np.issubdtype(dtype, np.floating)
    above = not floating and low == np.iinfo(dtype).min  # by its type; likewise below
    below = not floating and high == np.iinfo(dtype).max

    def check(x: Any) -> bool:
        if not isinstance(x, np.ndarray) or x.shape != shape:
            return bool(space.contains(x))
        if x.dtype != dtype and not np.can_cast(x.dtype, dtype):
            return False
        if floating and not np.isfinite(x).all():
            return False
        if uniform:
            same = x.dtype == dtype
            return ((same and above) or bool(x.min() >= low)) and (
                (same and below) or bool(x.max() <= high)
            )
        return bool((x >= space.low).all() and (x <= space.high).all())

    return check


def blank(space: spaces.Space) -> Any:
    """An observation of `space` to show where an environment has none: the one nearest to 0."""
    if isinstance(space, spaces.Dict):
        return {name: blank(inner) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    if isinstance(space, spaces.Discrete):
        return np.int64(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.start, space.dtype)
    return np.zeros(space.shape or (), space.dtype)
