"""The Vendi score: an effective number of different episodes, which also sees *how* different."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlft.diversity.measure import Traces, trace_of, visited
from rlft.errors import ConfigError


def vendi(
    traces: Sequence[Traces],
    *,
    trace: str = "position",
    kernel: Literal["jaccard", "cosine"] = "jaccard",
    since_vine: bool = True,
) -> float:
    """`(VS - 1) / (n - 1)`, VS the Vendi score of `n` episodes: 0 if all are alike, 1 if none shares
    a state with another.

    kernel: `jaccard`, shared states over all states of two episodes; `cosine`, of how often each state
    was visited. Both are positive semi-definite and 1 for equal episodes. One episode has 0.
    The normalisation is ours: the score itself lies in [1, n] (Friedman and Dieng 2022).
    """
    if kernel not in ("jaccard", "cosine"):
        raise ConfigError(f"diversity vendi: kernel must be jaccard or cosine, got {kernel!r}")
    num = len(traces)
    if num < 2:
        return 0.0
    if kernel == "jaccard":
        similarity_nn = _jaccard([visited(t, trace, since_vine) for t in traces])
    else:
        similarity_nn = _cosine(
            [Counter(map(tuple, trace_of(t, trace, since_vine).tolist())) for t in traces]
        )
    return float(np.clip((vendi_score(similarity_nn) - 1) / (num - 1), 0.0, 1.0))


def vendi_score(similarity_nn: np.ndarray) -> float:
    """`exp(-sum_i v_i log v_i)`, v the eigenvalues of `similarity / n`: in `[1, n]`.

    similarity: symmetric, positive semi-definite, 1 on the diagonal. Source: Friedman and Dieng,
    arXiv 2210.02410, definition 3.1.
    """
    values_n = np.linalg.eigvalsh(np.asarray(similarity_nn, dtype=np.float64) / len(similarity_nn))
    values_n = values_n[values_n > 1e-12]  # 0 log 0 is 0, and rounding makes some negative
    return float(np.exp(-(values_n * np.log(values_n)).sum()))


def _jaccard(sets: Sequence[frozenset]) -> np.ndarray:
    return np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])


def _cosine(counts: Sequence[Counter]) -> np.ndarray:
    norms = np.array([np.sqrt(sum(c * c for c in one.values())) for one in counts])
    inner = np.array([[sum(c * b[k] for k, c in a.items()) for b in counts] for a in counts])
    return inner / np.outer(norms, norms)
