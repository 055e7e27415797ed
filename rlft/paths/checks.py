"""Checks of a path beyond its reward: `(text, task) -> bool`. Short names of `algo.check`."""

from __future__ import annotations

from rlft.paths.marks import all_right
from rlft.types import Task

__all__ = ["marks"]


def marks(text: str, task: Task) -> bool:
    """Every calculation mark `<<a*b=c>>` is right; a text without marks passes."""
    return all_right(text)
