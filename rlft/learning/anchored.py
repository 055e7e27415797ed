"""Penalties on the distance to an anchor, on this rank's shards: EWC and L2 to the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from rlft.learning.shards import Intercept, Shard
from rlft.losses.anchor import penalty, pull


class Anchored:
    """One penalty. anchor, fisher: whole tensors by parameter name, of which this rank keeps its shards;
    anchor None: the weights as they are now; fisher None: 1 everywhere. replicated: every rank holds all.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        intercept: Intercept,
        *,
        anchor: Mapping[str, torch.Tensor] | None = None,
        fisher: Mapping[str, torch.Tensor] | None = None,
        world: int = 1,
        replicated: bool = True,
    ) -> None:
        self.coef = 0.0
        self._share = 1.0 / world if replicated else 1.0
        self._kept: list[tuple[Shard, torch.Tensor, torch.Tensor | None]] = []
        for shard in shards:
            if fisher is not None and shard.name not in fisher:
                continue  # a weight that the policy's distribution does not read
            theta = shard.theta.clone() if anchor is None else shard.part(anchor[shard.name])
            self._kept.append(
                (shard, theta, None if fisher is None else shard.part(fisher[shard.name]))
            )
        intercept.before.append(self._pull)

    def value(self) -> float:
        """This rank's share of `sum_i F_i (theta_i - theta*_i)^2`: over ranks, shares add up to it."""
        return self._share * sum(float(penalty(s.theta, a, f)) for s, a, f in self._kept)

    @torch.no_grad()
    def _pull(self, stepped: set[int]) -> None:
        if self.coef == 0:
            return
        for shard, anchor, fisher in self._kept:
            if id(shard.held) in stepped:
                shard.grad.add_(pull(shard.theta, anchor, fisher, self.coef))
