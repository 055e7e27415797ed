"""Diversity as the share of distinct episodes: distinct by the set of rooms, or of states, visited."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rlft.diversity.measure import Traces, visited


def distinct_share(signatures: Sequence[Hashable]) -> float:
    """`|U| / n`, U the distinct ones of `n` signatures; 0 where all are the same.

    So one of 0, 2/n, 3/n, ..., 1. Source: polychromic objectives (arXiv 2509.25424), under
    equation 7.
    """
    different = len(set(signatures))
    return different / len(signatures) if different > 1 else 0.0


def rooms(traces: Sequence[Traces], *, trace: str = "room", since_vine: bool = True) -> float:
    """Share of episodes with distinct *sets* of rooms visited; order and time do not count.

    since_vine: rooms from the rollout state on; else also those that the seed trajectory visited
    before, which all vines of a state share (the sources do not say which; arXiv 2509.25424).
    """
    return distinct_share([visited(t, trace, since_vine) for t in traces])


def states(traces: Sequence[Traces], *, trace: str = "position", since_vine: bool = True) -> float:
    """Share of episodes with distinct sets of states visited: finer than rooms, and nearly always 1
    for long episodes. trace: what counts as a state (`position`; `cell` of `env: gym`)."""
    return distinct_share([visited(t, trace, since_vine) for t in traces])
