"""States of a fixed buffer that every optimizer step also learns from: behavioural cloning.

Which of them is a function of the run's seed and of how many optimizer steps were taken, so a resumed run
draws what an uninterrupted one draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlft.batch import in_forwards
from rlft.learning.teacher import ActingTeacher
from rlft.losses.likelihood import NegativeLogLikelihood
from rlft.losses.teacher import KLToTeacher
from rlft.retention.memory import Memory
from rlft.seeding import Key
from rlft.types import Batch, PolicyOut, Strip


class Buffer:
    """The steps of `strips`, protected (`Memory`), with the teacher's distribution on each, if there is
    one. term: `BehaviouralCloning`; budget: steps of one forward, None: all of a draw."""

    def __init__(
        self,
        term: Any,
        strips: Sequence[Strip],
        teacher: ActingTeacher | None,
        key: Key,
        budget: int | None = None,
    ) -> None:
        self._term, self._key, self._budget = term, key, budget
        strips = _within(strips, term.size, key)
        self._lengths = np.array([len(s.reward) for s in strips])
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        obs = {n: np.concatenate([s.obs[n] for s in strips]) for n in strips[0].obs}
        count = int(self._starts[-1])
        self.memory = Memory(count, protected={**_named(obs), "action": _joined(strips, "action")})
        self._teacher = None if teacher is None else teacher.params(strips, carry=False)
        self._loss = NegativeLogLikelihood() if teacher is None else KLToTeacher()
        self._there: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.memory)

    def backward(self, learner: Any, coef: float, taken: int, rank: int) -> float:
        """Adds the gradient of `coef` times the mean loss over the step's draw; returns this rank's share
        of that mean: shares add up. A collective."""
        key = self._key.child(taken)
        windows = self._windows(learner, key)
        count = sum(len(w) - skip for w, skip in windows)
        share = 0.0
        for mine in self._forwards(windows, rank, learner.world):
            places, mask = _padded([windows[i] for i in mine])
            device = learner.device
            at, mask_BT = torch.from_numpy(places).to(device), torch.from_numpy(mask).to(device)
            obs, action = self._held(at)
            behaviour = action.new_zeros((*at.shape, learner.policy.distribution.width))
            if self._teacher is not None:
                behaviour = self._teacher.to(device)[at]
            state = None
            if learner.state_size:
                state = torch.zeros(len(at), learner.state_size, device=device)
            out = learner.forward(obs, state, action, behaviour, behaviour)
            value = self._loss(out, _batch(out, mask_BT)).sum() / max(count, 1)
            learner.backward(coef * value)
            share += float(value.detach())
        return share

    def _forwards(self, windows: list[Any], rank: int, world: int) -> list[np.ndarray]:
        """The numbers of this rank's windows, so many at a time as the budget allows."""
        numbers = np.arange(len(windows))
        longest = max(len(w) for w, _ in windows)
        each = len(windows) if self._budget is None else max(1, self._budget // longest)
        return in_forwards([numbers[r::world] for r in range(world)], rank, each)

    def _windows(self, learner: Any, key: Key) -> list[tuple[np.ndarray, int]]:
        """(numbers of steps, how many of the first are not learnt from) of each window."""
        rng, term = np.random.default_rng(key.seed()), self._term
        if not learner.state_size:
            chosen = rng.integers(0, len(self), term.batch)
            return [(chosen[i : i + 1], 0) for i in range(len(chosen))]
        found = []
        for _ in range(max(learner.world, term.batch // term.unroll)):
            episode = int(rng.choice(len(self._lengths), p=self._lengths / self._lengths.sum()))
            length = int(self._lengths[episode])
            first = int(rng.integers(0, max(1, length - term.unroll + 1)))
            before = max(0, first - term.burn_in)
            last = min(length, first + term.unroll)
            found.append((self._starts[episode] + np.arange(before, last), first - before))
        return found

    def _held(self, at: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if not self._there:  # once: nothing is added to it
            columns = self.memory.columns.items()
            self._there = {n: torch.from_numpy(x).to(at.device) for n, x in columns}
        held = {n: x[at] for n, x in self._there.items()}
        action = held.pop("action")
        return {n.removeprefix("obs/"): x for n, x in held.items()}, action


def _within(strips: Sequence[Strip], size: int | None, key: Key) -> list[Strip]:
    """Random whole episodes of together at most `size` steps, the last one cut."""
    if size is None:
        return list(strips)
    found, left = [], size
    for i in np.random.default_rng(key.child("size").seed()).permutation(len(strips)):
        if left <= 0:
            break
        found.append(strips[i].upto(left))
        left -= len(found[-1].reward)
    return found


def _named(obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"obs/{name}": x for name, x in obs.items()}


def _joined(strips: Sequence[Strip], name: str) -> np.ndarray:
    return np.concatenate([getattr(s, name) for s in strips])


def _padded(windows: Sequence[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of steps int64 `[B, T]`, mask bool `[B, T]`); of no window, one masked step."""
    if not windows:
        return np.zeros((1, 1), np.int64), np.zeros((1, 1), bool)
    longest = max(len(w) for w, _ in windows)
    places = np.stack([np.pad(w, (0, longest - len(w)), mode="edge") for w, _ in windows])
    steps = np.arange(longest)
    mask = np.stack([(steps >= skip) & (steps < len(w)) for w, skip in windows])
    return places.astype(np.int64), mask


def _batch(out: PolicyOut, mask_BT: torch.Tensor) -> Batch:
    """What the loss reads of a batch: its mask."""
    blank = torch.zeros_like(out.logp).detach()
    return Batch(mask_BT, mask_BT.float(), blank, blank, blank, mask_BT.any(1))
