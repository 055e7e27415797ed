"""The starts of an environment that answers back, as tasks: one start is one seed of its `reset`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlft.seeding import Key
from rlft.tasks import Lazy
from rlft.types import Task

_HELD_OUT_BELOW = 1_000_000
"""Held-out seeds lie below, training seeds at or above: whatever the sizes, they cannot meet."""

MOST_HELD_OUT = _HELD_OUT_BELOW // 2
MOST_TRAINING = 2**30


@dataclass(frozen=True)
class Starts(Lazy[int]):
    """One task for each of these seeds, `Task(id=str(seed), prompt="", info={"seed": seed, "options":
    options})`; options: what `reset` is given besides the seed, `{}` for nothing."""

    codes: range
    options: Mapping[str, Any] = field(default_factory=dict)

    def task(self, code: int) -> Task:
        """The start of this seed."""
        return Task(id=str(code), prompt="", info={"seed": code, "options": dict(self.options)})


def training_starts(size: int, seed: int) -> Starts:
    """`size` starts, from a place that `seed` picks. Their seeds stay below `2**31`."""
    if not 1 <= size <= MOST_TRAINING - _HELD_OUT_BELOW:
        raise ValueError(
            f"needs 1 to {MOST_TRAINING - _HELD_OUT_BELOW} training starts, got {size}"
        )
    first = _HELD_OUT_BELOW + Key(seed, ("starts", "train")).seed(bits=30)
    return Starts(range(first, first + size))


def held_out_starts(size: int, seed: int, options: Mapping[str, Any] | None = None) -> Starts:
    """`size` starts, none of which is a training start of any `seed`."""
    if not 1 <= size <= MOST_HELD_OUT:
        raise ValueError(f"needs 1 to {MOST_HELD_OUT} held-out starts, got {size}")
    first = Key(seed, ("starts", "held_out")).seed(bits=18)
    return Starts(range(first, first + size), options or {})
