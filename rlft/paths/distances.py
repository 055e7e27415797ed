"""How far two texts are apart: `(one, other) -> float`. Short names of `algo.distance`."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

__all__ = ["edit", "words"]


def edit(one: str, other: str) -> float:
    """Levenshtein distance in characters, as in the paper."""
    return float(Levenshtein.distance(one, other))


def words(one: str, other: str) -> float:
    """Levenshtein distance in words."""
    return float(Levenshtein.distance(one.split(), other.split()))
