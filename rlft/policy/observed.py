"""Observations as arrays by name, and what kind of thing each array is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from rlft.errors import ConfigError

WHOLE = "observation"
"""The name of an observation that has no parts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One array of an observation. kind: an image `[H, W, C]` of bytes (`channels_first`: `[C, H, W]`);
    words, whole numbers below `high` with 0 for none; one of `high` choices a place; or numbers. shape:
    without batch; divisor: what bytes are divided by."""

    name: str
    kind: Literal["image", "words", "choices", "numbers"]
    shape: tuple[int, ...]
    high: int = 0
    divisor: float = 1.0
    channels_first: bool = False

    @property
    def size(self) -> int:
        """Numbers of the flat form."""
        count = int(np.prod(self.shape, dtype=int))
        return count * self.high if self.kind == "choices" else count

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 of the same shape."""
        return x.float() / self.divisor if self.divisor != 1 else x.float()

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 `[N, size]`; choices become ones and zeros."""
        if self.kind == "choices":
            return torch.nn.functional.one_hot(x.long(), self.high).flatten(1).float()
        return self.scaled(x).reshape(len(x), -1)


def parts_of(space: spaces.Space) -> tuple[Part, ...]:
    """The parts of an observation space. Raises ConfigError for a kind that is not supported."""
    if isinstance(space, spaces.Dict):
        return tuple(_part(name, inner) for name, inner in space.spaces.items())
    return (_part(WHOLE, space),)


def _part(name: str, space: spaces.Space) -> Part:
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8:
            kind = "image" if len(space.shape) == 3 else "numbers"
            divisor, first = _divisor(space), _channels_first(space.shape)
            return Part(name, kind, space.shape, divisor=divisor, channels_first=first)  # type: ignore[arg-type]
        return Part(name, "numbers", space.shape or (1,))
    if isinstance(space, spaces.Discrete):
        return Part(name, "choices", (1,), int(space.n))
    if isinstance(space, spaces.MultiBinary):
        return Part(name, "numbers", tuple(np.atleast_1d(space.n)))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        if name == "mission" or len(set(space.nvec.tolist())) == 1:
            kind = "words" if name == "mission" else "choices"
            return Part(name, kind, space.nvec.shape, int(space.nvec.max()))  # type: ignore[arg-type]
        return Part(name, "numbers", space.nvec.shape)
    raise ConfigError(
        f"observation {name!r} is of kind {space}, which is not supported; supported are Box, Discrete, "
        f"MultiDiscrete [K], MultiBinary, and a Dict of those. Wrap the environment with "
        f"gymnasium.wrappers.TransformObservation or FlattenObservation."
    )


_SMALLEST_PICTURE = 32


def _divisor(space: spaces.Box) -> float:
    """The highest value, if the space says it. MiniGrid's own images, codes up to 10 of few cells, are
    declared as bytes up to 255, as pixels are: an image that is smaller than any picture counts as such."""
    high = float(space.high.max())
    if high < 255:
        return max(high, 1.0)
    grid = len(space.shape) == 3 and sorted(space.shape)[1] < _SMALLEST_PICTURE
    return 10.0 if grid else 255.0


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image is `[C, H, W]`, as frames that Gymnasium stacks are: few on the first axis, many on
    the others."""
    return len(shape) == 3 and min(shape[1:]) >= 3 * shape[0]


def is_row(observation: Any, rows: Mapping[str, np.ndarray], at: int) -> bool:
    """Whether an observation is row `at` of the arrays `[T, ...]`, in their types."""
    seen = as_arrays(observation)
    return all(np.array_equal(x[at], np.asarray(seen[name], x.dtype)) for name, x in rows.items())


def as_arrays(observation: Any) -> dict[str, np.ndarray]:
    """An observation, or a batch of them as Gymnasium's vector API gives it, as arrays by name."""
    if isinstance(observation, Mapping):
        return {name: np.asarray(x) for name, x in observation.items()}
    return {WHOLE: np.asarray(observation)}
