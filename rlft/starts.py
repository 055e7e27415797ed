"""The starts of an environment that answers back, as tasks: one start is one seed of its `reset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from rlft.seeding import Key
from rlft.types import Task

_HELD_OUT_BELOW = 1_000_000
"""Held-out seeds lie below, training seeds at or above: whatever the sizes, they cannot meet."""

MOST_HELD_OUT = _HELD_OUT_BELOW // 2
MOST_TRAINING = 2**30


@dataclass(frozen=True)
class Starts(Sequence[Task]):
    """Tasks `first`, `first + 1`, ...: made when asked for, so there may be very many.

    Each is `Task(id=str(seed), prompt="", info={"seed": seed, "options": options})`; options: what
    `reset` is given besides the seed, `{}` for nothing.
    """

    first: int
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        place = index + self.size if index < 0 else index
        if not 0 <= place < self.size:
            raise IndexError(f"start {index} of {self.size}")
        seed = self.first + place
        return Task(id=str(seed), prompt="", info={"seed": seed, "options": dict(self.options)})


def training_starts(size: int, seed: int) -> Starts:
    """`size` starts, from a place that `seed` picks. Their seeds stay below `2**31`."""
    if not 1 <= size <= MOST_TRAINING - _HELD_OUT_BELOW:
        raise ValueError(
            f"needs 1 to {MOST_TRAINING - _HELD_OUT_BELOW} training starts, got {size}"
        )
    return Starts(_HELD_OUT_BELOW + Key(seed, ("starts", "train")).seed(bits=30), size)


def held_out_starts(size: int, seed: int, options: Mapping[str, Any] | None = None) -> Starts:
    """`size` starts, none of which is a training start of any `seed`."""
    if not 1 <= size <= MOST_HELD_OUT:
        raise ValueError(f"needs 1 to {MOST_HELD_OUT} held-out starts, got {size}")
    first = Key(seed, ("starts", "held_out")).seed(bits=18)
    return Starts(first, size, options or {})
