"""From rewards of a population to the weight of each member. Pure.

Sources: Qiu et al., arXiv 2509.24372 (z-scores with the population's deviation, ddof 0); Salimans et
al., arXiv 1703.03864, section 2.1 (centred ranks).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlft.types import Group

Shaping = Literal["zscore", "ranks", "raw"]


def member_rewards(groups: Sequence[Group], population: int) -> list[float | None]:
    """The mean reward of each member over the tasks, which are common to all; None for a member
    without a reward somewhere. A task on which nobody has one is left out.

    The mean is over answers, so it does not matter in which mini-batches they were scored.
    """
    rows = []
    for group in groups:
        scored = {m.member: m.reward for m in group.members if m.reward is not None}
        if scored:
            rows.append([scored.get(i) for i in range(population)])
    found: list[float | None] = []
    for column in zip(*rows, strict=True):
        known = [r for r in column if r is not None]
        found.append(float(np.mean(known)) if len(known) == len(column) else None)
    return found or [None] * population


def shaped(rewards: Sequence[float] | np.ndarray, shaping: Shaping) -> np.ndarray:
    """The weight of each member, float64 `[N]`; all 0 if the rewards are all equal.

    zscore: mean 0 and deviation 1, so neither scale nor offset of the reward matters; ranks: equally
    spaced in [-0.5, 0.5], equal rewards sharing their mean rank; raw: the rewards themselves.
    """
    reward_N = np.asarray(rewards, np.float64)
    if len(reward_N) == 0 or np.ptp(reward_N) == 0:
        return np.zeros(len(reward_N))
    if shaping == "raw":
        return reward_N
    if shaping == "zscore":
        return (reward_N - reward_N.mean()) / (reward_N.std() + 1e-8)
    below = (reward_N[:, None] > reward_N).sum(axis=1)
    equal = (reward_N[:, None] == reward_N).sum(axis=1)
    return (below + (equal - 1) / 2) / (len(reward_N) - 1) - 0.5


@dataclass(frozen=True, slots=True)
class Ratchet:
    """What a ratchet remembers. scale: of the learning rate; best: the best evaluation so far; seen:
    evaluations looked at; below: how many in a row were below the best."""

    scale: float = 1.0
    best: float | None = None
    seen: int = 0
    below: int = 0

    def after(self, evaluations: Sequence[float], patience: int) -> tuple[Ratchet, str]:
        """The next state, and what to do: `keep` these weights as the best, `recall` the best ones, or
        nothing (``). Recalling halves the learning rate."""
        state, todo = self, ""
        for value in evaluations[self.seen :]:
            if state.best is None or value >= state.best:
                state, todo = replace(state, best=value, below=0), "keep"
            else:
                state, todo = replace(state, below=state.below + 1), ""
        state = replace(state, seen=len(evaluations))
        if state.below >= patience:
            return replace(state, below=0, scale=state.scale / 2), "recall"
        return state, todo


def lost_members(groups: Sequence[Group], population: int) -> list[int]:
    """Members without a reward on some task on which another member has one."""
    rewards = member_rewards(groups, population)
    return [i for i, r in enumerate(rewards) if r is None]


def whole_pairs(rewards: Sequence[float | None]) -> list[float | None]:
    """The rewards, without those of a pair (2k, 2k + 1) of which one is missing."""
    pairs = zip(rewards[::2], rewards[1::2], strict=True)
    return [r for pair in pairs for r in (pair if None not in pair else (None, None))]


def merged(groups: Sequence[Group], again: Sequence[Group]) -> list[Group]:
    """The groups with what was scored again; a member of `again` replaces its first attempt. A task that
    a step holds twice has its groups in the same order in both."""
    second: dict[str, list[Group]] = {}
    for g in again:
        second.setdefault(g.task.id, []).append(g)
    out = []
    for group in groups:
        waiting = second.get(group.task.id)
        new = waiting.pop(0) if waiting else None
        drawn = {m.member for m in new.members} if new else set()
        kept = tuple(m for m in group.members if m.member not in drawn)
        out.append(dataclasses.replace(group, members=kept + (new.members if new else ())))
    return [*out, *(g for waiting in second.values() for g in waiting)]


def fitness_numbers(fitness: np.ndarray, population: int) -> dict[str, float]:
    """What a generation's log says of its members' mean rewards `[N]`."""
    lost = {"es/lost": float(population - len(fitness))}
    if len(fitness) == 0:
        return lost
    return {
        **lost,
        "es/fitness_mean": float(fitness.mean()),
        "es/fitness_std": float(fitness.std()),
        "es/fitness_min": float(fitness.min()),
        "es/fitness_max": float(fitness.max()),
    }
