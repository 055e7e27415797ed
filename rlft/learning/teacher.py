"""A frozen policy that a learner is kept near: what it says of strips, under its own memory.

It is not part of the module that is trained: no optimizer, checkpoint or publishing knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlft.errors import ConfigError
from rlft.types import Strip


class ActingTeacher:
    """A policy in eval mode without gradients. `carried`: by slot, its state `[H]` after the last strip."""

    def __init__(self, policy: Any, device: torch.device, token_budget: int = 4096) -> None:
        self.policy = policy.to(device).eval().requires_grad_(False)
        self.carried: dict[int, np.ndarray] = {}
        self._device, self._budget = device, token_budget

    @torch.no_grad()
    def params(self, strips: Sequence[Strip], carry: bool = True) -> torch.Tensor:
        """Its distributions on all steps, float32 `[N, D]`, strips one after the other. carry: a strip
        that continues an episode begins with the state that the strip before of its slot ended with; any
        other with none."""
        if self.policy.state_size:
            return self._with_memory(strips, carry)
        obs = {n: np.concatenate([s.obs[n] for s in strips]) for n in strips[0].obs}
        count = len(next(iter(obs.values())))
        parts = []
        for at in range(0, count, self._budget):
            here = {n: torch.from_numpy(x[at : at + self._budget]) for n, x in obs.items()}
            parts.append(self.policy.act({n: x.to(self._device) for n, x in here.items()}, None)[0])
        return torch.cat(parts)

    def _with_memory(self, strips: Sequence[Strip], carry: bool) -> torch.Tensor:
        """Strips side by side, step by step; one that goes on where another of the same slot ended comes
        after that one."""
        if any(s.slot < 0 and s.state is not None and s.state.any() for s in strips):
            raise ConfigError(
                "a teacher with a memory was asked about an episode from its middle on, and it has not "
                "seen what came before (vines of algo.rollout_states): leave kickstarting out, or take a "
                "policy without a memory"
            )
        turn = _turns(strips) if carry else [0] * len(strips)
        said: list[list[torch.Tensor]] = [[] for _ in strips]
        for number in range(max(turn, default=-1) + 1):
            rows = np.flatnonzero(np.array(turn) == number)
            self._side_by_side([strips[r] for r in rows], [said[r] for r in rows], carry)
        return torch.stack([one for row in said for one in row])

    def _side_by_side(
        self, strips: Sequence[Strip], said: Sequence[list[torch.Tensor]], carry: bool
    ) -> None:
        lengths = np.array([len(s.reward) for s in strips])
        state = torch.zeros(len(strips), self.policy.state_size, device=self._device)
        for row, strip in enumerate(strips):
            if carry and strip.continues and strip.slot in self.carried:
                state[row] = torch.from_numpy(self.carried[strip.slot]).to(self._device)
        for t in range(int(lengths.max(initial=0))):
            rows = np.flatnonzero(lengths > t)
            obs = self._at(strips, rows, t)
            at = torch.from_numpy(rows).to(self._device)
            params, _, after = self.policy.act(obs, state[at])
            state[at] = after
            for row, one in zip(rows.tolist(), params, strict=True):
                said[row].append(one)
        if carry:
            for row, strip in enumerate(strips):
                if strip.slot >= 0:  # in order: the last strip of a slot is the one that may go on
                    self.carried[strip.slot] = state[row].cpu().numpy()

    def _at(self, strips: Sequence[Strip], rows: np.ndarray, t: int) -> dict[str, torch.Tensor]:
        names: Mapping[str, Any] = strips[0].obs
        found = {n: np.stack([strips[r].obs[n][t] for r in rows.tolist()]) for n in names}
        return {n: torch.from_numpy(x).to(self._device) for n, x in found.items()}


def _turns(strips: Sequence[Strip]) -> list[int]:
    """When each strip can be read: at once, or after the strip before of its slot that it goes on from."""
    found: list[int] = []
    last: dict[int, int] = {}
    for strip in strips:
        before = last.get(strip.slot) if strip.slot >= 0 else None
        turn = 0 if before is None else before + strip.continues
        last[strip.slot] = turn
        found.append(turn)
    return found
