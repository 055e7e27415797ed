"""Supervised text that every optimizer step of a language model also learns from: replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.config import Config
from rlft.retention.texts import token_lists
from rlft.seeding import Key


class TextBuffer:
    """The texts of a `TextReplay` term, as tokens. Which are drawn is a function of the run's seed and of
    how many optimizer steps were taken."""

    def __init__(self, term: Any, cfg: Config, key: Key) -> None:
        self._batch, self._key = term.batch, key
        longest = getattr(term, "longest", None) or cfg.model.max_length
        self._texts = token_lists(term.path, Path(term.tokenizer), longest, column=term.column)

    def __len__(self) -> int:
        return len(self._texts)

    def backward(self, learner: Any, coef: float, taken: int, rank: int) -> float:
        """Adds the gradient of `coef` times the mean -logp of the drawn texts' tokens; returns this rank's
        share of that mean: shares add up. A collective."""
        rng = np.random.default_rng(self._key.child(taken).seed())
        drawn = [self._texts[i] for i in rng.integers(0, len(self), self._batch)]
        tokens = sum(len(ids) - 1 for ids in drawn)
        mine = drawn[rank :: learner.world]
        longest = max((len(ids) for ids in mine), default=2)
        ids = torch.zeros(max(1, len(mine)), longest, dtype=torch.int64)
        mask = torch.zeros(max(1, len(mine)), longest - 1, dtype=torch.bool)
        for row, text in enumerate(mine):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text) - 1] = True
        ids, mask = ids.to(learner.device), mask.to(learner.device)
        value = -(self.logp(learner, ids, mask) * mask).sum() / max(tokens, 1)
        learner.backward(coef * value)
        return float(value.detach())

    def logp(self, learner: Any, ids_BL: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Log-probs `[B, L - 1]` of each token after the first; mask: which are there."""
        position = torch.arange(1, ids_BL.shape[1], device=learner.device).expand(mask_BT.shape)
        return learner.forward(ids_BL, position, mask_BT, 1.0).logp
