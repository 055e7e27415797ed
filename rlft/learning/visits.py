"""How often each action was taken on each observation: a count-based bonus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch


class Visits:
    """Counts of (observation, action), by a 64-bit hash of both, over the whole run.

    Every rank sees all steps, so all of them count alike. The bonus is `min(1, N(s, a)^(-1/2))`, the
    visits of this batch included: that of the UCB variants of arXiv 2509.25424.
    """

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def bonus(self, obs: Mapping[str, torch.Tensor], action: torch.Tensor) -> torch.Tensor:
        """Counts these steps `[N, ...]`; returns the bonus of each, float32 `[N]`."""
        hashes = _hash([*obs.values(), action])
        keys, place, count = np.unique(hashes, return_inverse=True, return_counts=True)
        totals = np.empty(len(keys))
        for i, (key, more) in enumerate(zip(keys.tolist(), count.tolist(), strict=True)):
            totals[i] = self.counts[key] = self.counts.get(key, 0) + more
        bonus = np.minimum(1.0, totals**-0.5)[place]
        return torch.from_numpy(bonus.astype(np.float32)).to(action.device)


def _hash(parts: list[torch.Tensor]) -> np.ndarray:
    """uint64 `[N]`: bytes times fixed random odd numbers, added up and mixed."""
    rows = [np.ascontiguousarray(x.cpu().numpy()).reshape(len(x), -1).view(np.uint8) for x in parts]
    whole = np.concatenate(rows, axis=1)
    rng = np.random.default_rng(0x5EED)
    odd = rng.integers(0, 2**63, whole.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    with np.errstate(over="ignore"):
        mixed = (whole.astype(np.uint64) + np.uint64(1)) @ odd
        return mixed ^ (mixed >> np.uint64(29))
