"""Whether an observation is one of its space, cheaply enough to ask at every step.

Gymnasium's `contains` compares a Box with its bounds element by element, which for a small simulator
takes as long as a step. The same question here is two reductions where the bounds are the same
everywhere, and it has two halves: what is asked of each observation alone (names, shape, type), and what
may as well be asked of all observations of a block in one array (its numbers): of NetHack's, one by one,
that took longer than the game. Beyond Gymnasium's question: numbers have to be finite, because a policy
has no answer to others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

Check = Callable[[Any], bool]


def within(space: spaces.Space) -> Check:
    """A function that says whether an observation is one of `space`."""
    alone, numbers = shaped(space), numbers_within(space)
    return lambda x: alone(x) and numbers(x)


def shaped(space: spaces.Space) -> Check:
    """A function that says whether an observation is one of `space`, but for what `numbers_within` asks."""
    if isinstance(space, spaces.Dict):
        parts = [(name, *_plainly(inner), shaped(inner)) for name, inner in space.spaces.items()]

        def whole(x: Any) -> bool:
            if (type(x) is not dict and not isinstance(x, Mapping)) or len(x) != len(parts):
                return False
            for name, shape, dtype, check in parts:
                if name not in x:
                    return False
                one = x[name]
                if type(one) is np.ndarray and one.dtype is dtype and one.shape == shape:
                    continue  # no call for what is nearly always so
                if not check(one):
                    return False
            return True

        return whole
    if isinstance(space, spaces.Box) and _has_numbers(space):
        return _box(space)
    if isinstance(space, spaces.Discrete):
        return _discrete(space)
    if isinstance(space, spaces.MultiDiscrete) and _one_range(space):
        shape, dtype = space.nvec.shape, space.dtype

        def alike(x: Any) -> bool:
            if isinstance(x, np.ndarray) and x.dtype == dtype and x.shape == shape:
                return True
            return bool(space.contains(x))

        return alike
    return space.contains


def numbers_within(space: spaces.Space) -> Check:
    """A function that says whether the numbers of an observation, or of a batch `[M, ...]` of them as
    Gymnasium's vector environments stack it, are finite and within their bounds."""
    if isinstance(space, spaces.Dict):
        asked = {name: numbers_within(inner) for name, inner in space.spaces.items()}
        parts = [(name, check) for name, check in asked.items() if check is not _no_question]
        return (lambda x: all(check(x[name]) for name, check in parts)) if parts else _no_question
    if isinstance(space, spaces.Box) and _has_numbers(space):
        return _box_numbers(space)
    if isinstance(space, spaces.MultiDiscrete) and _one_range(space):
        first, beyond = int(space.start.flat[0]), int(space.start.flat[0] + space.nvec.flat[0])
        return lambda x: bool(np.min(x) >= first) and bool(np.max(x) < beyond)
    return _no_question


def _plainly(space: spaces.Space) -> tuple[tuple[int, ...], Any]:
    """The shape and type of arrays of which `shaped` has nothing more to ask, if there are any."""
    if isinstance(space, spaces.Box) and _has_numbers(space):
        return space.shape, space.dtype
    return (), None


def _no_question(x: Any) -> bool:
    return True


def _discrete(space: spaces.Discrete) -> Check:
    first, beyond = int(space.start), int(space.start) + int(space.n)

    def check(x: Any) -> bool:
        if type(x) is int or type(x) is np.int64:
            return bool(first <= x < beyond)
        return bool(space.contains(x))

    return check


def _one_range(space: spaces.MultiDiscrete) -> bool:
    nvec, start = space.nvec, np.asarray(space.start)
    return bool(nvec.size and (nvec == nvec.flat[0]).all() and (start == start.flat[0]).all())


def _has_numbers(space: spaces.Box) -> bool:
    return bool(space.shape and space.low.size and np.dtype(space.dtype).kind != "b")


def _box(space: spaces.Box) -> Check:
    shape, dtype = space.shape, space.dtype

    def check(x: Any) -> bool:
        if not isinstance(x, np.ndarray) or x.shape != shape:
            return bool(space.contains(x))
        return x.dtype is dtype or x.dtype == dtype or np.can_cast(x.dtype, dtype)

    return check


def _box_numbers(space: spaces.Box) -> Check:
    dtype: Any = space.dtype
    low, high = space.low.flat[0], space.high.flat[0]
    uniform = bool((space.low == low).all() and (space.high == high).all())
    floating = np.issubdtype(dtype, np.floating)
    above = not floating and low == np.iinfo(dtype).min  # by its type; likewise below
    below = not floating and high == np.iinfo(dtype).max
    if above and below and uniform:
        return _no_question

    def check(x: Any) -> bool:
        x = np.asarray(x)
        if floating and not np.isfinite(x).all():
            return False
        if uniform:
            return (above or bool(x.min() >= low)) and (below or bool(x.max() <= high))
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
