"""The second proof after each publish: does the engine *use* what its loader was handed?

A canary prompt is scored by the learner and by every engine. Two faults show: a gap larger than
kernels explain, and an engine that answers bit for bit as before although its weights changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlft.errors import WeightsMismatch
from rlft.seeding import Key
from rlft.types import TensorSpec

_TOLERANCE = {"float32": 0.005, "bfloat16": 0.25}
"""Mean |log-prob gap| in nats. Measured between vLLM and a forward of the same weights: 1e-6 in
float32, 0.02 to 0.06 in bfloat16 on ordinary text, more on unlikely tokens such as the canary's."""

_LENGTH = 16


def canary_ids(prompt_ids: Sequence[int], vocabulary: int, key: Key) -> list[int]:
    """A fixed token sequence: the start of a real prompt, then random tokens, which no model finds
    likely and whose log-probs therefore react to any change of weights."""
    rng = key.child("canary").rng()
    head = list(prompt_ids[: _LENGTH // 2])
    return head + [rng.randrange(vocabulary) for _ in range(_LENGTH - len(head))]


class CanaryWatch:
    """Compares each engine with the learner, and with its own last answer."""

    def __init__(self, dtype: str, tolerance: float | None) -> None:
        self.tolerance = tolerance if tolerance is not None else _TOLERANCE[dtype]
        self._manifest: dict[str, str] = {}
        self._last: dict[str, np.ndarray] = {}
        self._own: np.ndarray | None = None

    def check(
        self, learner: np.ndarray, engines: dict[str, np.ndarray], manifest: Sequence[TensorSpec]
    ) -> float:
        """Returns the largest mean gap in nats over `engines`, by name.

        Raises WeightsMismatch naming the engine, by how much it is off or that it did not change.
        """
        hashes = {spec.name: spec.hash for spec in manifest}
        changed = [n for n, h in hashes.items() if self._manifest.get(n) not in (None, h)]
        # A policy that is sure moves its weights by less than shows. So what an engine's answers say
        # counts only where the learner's own moved, on most tokens.
        shows = self._own is not None and (self._own != learner).mean() > 0.5
        worst = 0.0
        for name, logp in engines.items():
            gap = float(np.abs(logp - learner).mean())
            worst = max(worst, gap)
            if not gap <= self.tolerance:
                raise WeightsMismatch(
                    f"{name} does not use the published weights: on the canary prompt its log-probs "
                    f"differ from the learner's by {gap:.4f} nats on average (largest "
                    f"{np.abs(logp - learner).max():.4f}); at most {self.tolerance:g} is expected "
                    f"(publish.canary_tolerance)."
                )
            last = self._last.get(name)
            # A few changed tensors may leave sixteen log-probs alone; most of them cannot.
            most = len(changed) * 2 > len(hashes)
            if last is not None and shows and most and np.array_equal(last, logp):
                raise WeightsMismatch(
                    f"{name} is stale: {len(changed)} of {len(hashes)} tensors changed, yet its "
                    f"canary log-probs are bit for bit those of the version before."
                )
            self._last[name] = logp
        self._manifest, self._own = hashes, learner
        return worst
