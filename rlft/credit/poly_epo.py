"""Poly-EPO: credit for being in good sets, where a good set is right *and* diverse.

The set objective of polychromic fine-tuning (arXiv 2509.25424, equation 7) over completions of one
prompt, with the marginal advantage of its language-model form.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Literal

import torch

from rlft.credit.group import checked
from rlft.errors import ConfigError

_MOST_SETS = 200_000


def poly_epo(
    reward_B: torch.Tensor,
    group_B: torch.Tensor,
    cluster_B: torch.Tensor,
    *,
    size: int = 4,
    sets: int | Literal["all"] = "all",
    reduce: Literal["sum", "mean"] = "mean",
    seed: int = 0,
    cluster: str | dict | None = None,
) -> torch.Tensor:
    """Advantage float32 `[B]`: over the sets that hold the row, how far each is above the mean set.

    A set of `size` members of a group scores `mean reward x d`; d is its number of distinct clusters
    over its size, 0 if there is only one. So a wrong answer that tries another way can have a
    positive advantage, and a right one that repeats the others a negative one.

    reward_B in [0, 1]; cluster_B: int64, which strategy the row follows; negative: degenerate, adds
    no cluster. sets: all of them, or this many, drawn without replacement by `seed` (the same places
    in every group and step: members are exchangeable). cluster: the plug-in that `cluster_B` comes
    from (`rlft.credit.clusters`), read where advantages are; None: the reward's part `cluster`, or
    without one equal texts. reduce: `sum` over the row's sets, as in the
    paper, or their `mean`, whose scale does not depend on how many there are. A group of at most
    `size` members has one set, and gets 0.

    Source: Poly-EPO (N = 8, n = 4, all 70 sets, sum). Departure: `mean` by default.
    """
    if size < 2 or reduce not in ("sum", "mean"):
        raise ConfigError(
            f"poly_epo: size must be at least 2 and reduce sum or mean, got {size}, {reduce!r}."
        )
    reward_B, index_B = checked(reward_B, group_B)
    if cluster_B.shape != reward_B.shape or cluster_B.is_floating_point():
        raise ValueError(
            f"cluster_B must be integers of shape {list(reward_B.shape)}, got {cluster_B.dtype} "
            f"{list(cluster_B.shape)}."
        )
    if len(reward_B) and not (reward_B.min() >= 0 and reward_B.max() <= 1):
        raise ConfigError(
            f"poly_epo needs rewards in [0, 1], got {float(reward_B.min())} to "
            f"{float(reward_B.max())}; rescale the reward."
        )
    adv_B = torch.zeros_like(reward_B)
    for group in index_B.unique():
        rows = (index_B == group).nonzero().flatten()
        if len(rows) > size:
            places_KN = _sets(len(rows), size, sets, seed)
            adv_B[rows] = _marginal(reward_B[rows], cluster_B[rows], places_KN, reduce)
    return adv_B.float()


# The only set of `size` members is above nothing. Read by `rlft.credit.reads.members_needed`.
poly_epo.members_needed = lambda size, **keys: size + 1  # type: ignore[attr-defined]


def set_score(reward_KN: torch.Tensor, cluster_KN: torch.Tensor) -> torch.Tensor:
    """Score `[K]` of each set: mean reward times the share of distinct clusters, 0 for only one."""
    sorted_KN = cluster_KN.sort(dim=1).values
    new_KN = torch.ones_like(sorted_KN, dtype=torch.bool)
    new_KN[:, 1:] = sorted_KN[:, 1:] != sorted_KN[:, :-1]
    distinct_K = (new_KN & (sorted_KN >= 0)).sum(1)
    share_K = torch.where(distinct_K > 1, distinct_K / cluster_KN.shape[1], 0.0)
    return reward_KN.mean(1) * share_K.to(reward_KN.dtype)


def _marginal(
    reward_N: torch.Tensor, cluster_N: torch.Tensor, places_KN: torch.Tensor, reduce: str
) -> torch.Tensor:
    score_K = set_score(reward_N[places_KN], cluster_N[places_KN])
    above_KN = (score_K - score_K.mean())[:, None].expand(places_KN.shape)
    flat = places_KN.flatten()
    adv_N = torch.zeros_like(reward_N).index_add(0, flat, above_KN.flatten())
    if reduce == "sum":
        return adv_N
    return adv_N / flat.bincount(minlength=len(reward_N)).clamp(min=1)


def _sets(num: int, size: int, sets: int | str, seed: int) -> torch.Tensor:
    """Places `[K, size]` of the members of each set."""
    there_are = math.comb(num, size)
    if isinstance(sets, str) or sets >= there_are:
        if there_are > _MOST_SETS:
            raise ConfigError(
                f"poly_epo: {num} members have {there_are:,} sets of {size}; set sets to a number, "
                f"e.g. 1000."
            )
        return torch.tensor(list(itertools.combinations(range(num), size)))
    if sets < 1:
        raise ConfigError(f"poly_epo: sets must be `all` or at least 1, got {sets}.")
    rng = random.Random(seed)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < sets:
        drawn[tuple(sorted(rng.sample(range(num), size)))] = None
    return torch.tensor(list(drawn))
