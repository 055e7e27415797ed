"""What an evaluation of many episodes says: return, success, pass@k, coverage. Pure.

`S` training seeds, `C` configurations, `R` rollouts of each, `K` values of k. All numbers here are means
over configurations (and seeds) that `rlft.record.intervals.interval` puts an interval around.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlft.record.estimators import pass_at_k
from rlft.record.intervals import Interval, interval


@dataclass(frozen=True, slots=True)
class Evaluation:
    """ret: mean return; success: share of episodes; coverage: share of configurations solved at least
    once; ks: `[K]`; pass_at: `[K]`, pass@k with its interval. Each over seeds and configurations."""

    ret: Interval
    success: Interval
    coverage: Interval
    ks: tuple[int, ...]
    pass_at: Interval


def evaluation(
    ret_SCR: np.ndarray,
    success_SCR: np.ndarray,
    *,
    ks: Sequence[int] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """The numbers of `R` rollouts of each of `C` configurations under `S` training seeds.

    ks: of pass@k, all from 1 to R by default. Raises ValueError for arrays of other shapes.
    """
    ret_SCR = np.asarray(ret_SCR, dtype=np.float64)
    won_SCR = np.asarray(success_SCR).astype(bool)
    if ret_SCR.shape != won_SCR.shape or ret_SCR.ndim != 3:
        raise ValueError(
            f"needs returns and successes [S, C, R], got {ret_SCR.shape} and {won_SCR.shape}"
        )
    chosen = tuple(ks) if ks is not None else tuple(range(1, ret_SCR.shape[2] + 1))
    around = functools.partial(interval, level=level, draws=draws, seed=seed)
    return Evaluation(
        ret=around(ret_SCR.mean(2)),
        success=around(won_SCR.mean(2)),
        coverage=around(won_SCR.max(2)),
        ks=chosen,
        pass_at=around(pass_curve(won_SCR, chosen)),
    )


def pass_curve(success_SCR: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """pass@k `[S, C, K]` of each seed and configuration, by the unbiased estimator `1 - C(R - c, k) /
    C(R, k)`. At k = R it is 1 where any rollout succeeded. Raises ValueError unless `1 <= k <= R`."""
    won_SCR = np.asarray(success_SCR).astype(bool)
    num = won_SCR.shape[2]
    # One row for each possible count: there are fewer of those than configurations.
    table = np.array([[pass_at_k(num, correct, k) for k in ks] for correct in range(num + 1)])
    return table[won_SCR.sum(2)]


def pass_gap(
    success_SCR: np.ndarray, before_SCR: np.ndarray, ks: Sequence[int], **how: float
) -> Interval:
    """pass@k `[K]` less that of another policy on the same configurations, with the interval of the
    difference: where its `high` is below 0, fewer configurations are solved than `before`.

    before: `[S, C, R']`, or one seed `[1, C, R']` that all are compared with. how: of `interval`.
    """
    after, before = pass_curve(success_SCR, ks), pass_curve(before_SCR, ks)
    if before.shape[1:] != after.shape[1:] or before.shape[0] not in (1, after.shape[0]):
        raise ValueError(
            f"needs the same seeds and configurations of both, got {after.shape[:2]} and "
            f"{before.shape[:2]}"
        )
    return interval(after - before, **how)  # type: ignore[arg-type]


def visited_share(traces: Sequence[Mapping[str, np.ndarray]], name: str, of: int) -> float:
    """How many of `of` places (rooms of a level, states) a set of episodes visited together, as a share.

    traces: of each episode, name -> int `[T + 1, d]`. Raises ValueError if more were visited than
    there are, or for no episode.
    """
    if not traces:
        raise ValueError("needs at least one episode")
    rows = np.concatenate([np.asarray(t[name]).reshape(len(t[name]), -1) for t in traces])
    visited = len(np.unique(rows, axis=0))
    if visited > of:
        raise ValueError(f"{visited} values of {name!r} were visited, more than the {of} there are")
    return visited / of
