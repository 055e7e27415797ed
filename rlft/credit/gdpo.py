"""GDPO (arXiv 2601.05242): several rewards, each normalised apart before they are added."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlft.credit.group import group_relative
from rlft.errors import ConfigError, did_you_mean


def gdpo(
    parts: Mapping[str, torch.Tensor],
    group_B: torch.Tensor,
    *,
    weights: Mapping[str, float] | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Advantage float32 `[B]`: the weighted sum of each part's group-relative advantage, whitened.

    parts: named parts of the reward, each `[B]`; `reward` is the whole reward. weights: which parts
    count and how much; None: all but `reward`, each 1. Normalised apart, (0, 2) and (1, 1) differ;
    after adding, GRPO could not tell them. The sum is whitened over the batch (n - 1), so its scale
    does not grow with the number of parts; a batch of equal sums gets 0.

    Departure: whitened over rows, not tokens (as in TRL).
    Raises ConfigError: a weight for a part that there is not, or no part.
    """
    chosen = dict.fromkeys(sorted(set(parts) - {"reward"}), 1.0) if weights is None else weights
    if not chosen:
        raise ConfigError(
            "gdpo needs named parts of the reward and found none; let the reward function return a "
            "dict of them, or name the parts in weights."
        )
    total_B = torch.zeros(len(group_B), dtype=torch.float64)
    for name, weight in chosen.items():
        if name not in parts:
            raise ConfigError(
                f"gdpo: weights names {name!r}, which the rewards do not have."
                f"{did_you_mean(name, parts)} They have: {', '.join(sorted(parts))}."
            )
        total_B = total_B + weight * group_relative(parts[name], group_B, eps=eps).double()
    one_group_B = torch.zeros_like(group_B)
    return group_relative(total_B, one_group_B, eps=eps)
