"""Texts that every optimizer step of a language model also learns from, or is kept near a teacher on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.batch import plan
from rlft.learning.writing_teacher import WritingTeacher
from rlft.retention.texts import token_lists
from rlft.seeding import Key


class TextBuffer:
    """The texts of a `TextReplay` term, as tokens. Which are drawn is a function of the run's seed and of
    how many optimizer steps were taken. longest: tokens of one text; budget: of one forward; teacher: of
    `target: teacher`."""

    def __init__(
        self,
        term: Any,
        key: Key,
        *,
        longest: int,
        budget: int,
        teacher: WritingTeacher | None = None,
    ) -> None:
        self._batch, self._key, self._teacher = term.batch, key, teacher
        self._budget = budget
        self._texts = token_lists(
            term.path, Path(term.tokenizer).expanduser(), longest, column=term.column
        )

    def __len__(self) -> int:
        return len(self._texts)

    def backward(self, learner: Any, coef: float, taken: int, rank: int) -> float:
        """Adds the gradient of `coef` times the mean loss over the tokens of the drawn texts; returns this
        rank's share of that mean: shares add up. A collective."""
        rng = np.random.default_rng(self._key.child(taken).seed())
        drawn = [self._texts[i] for i in rng.integers(0, len(self), self._batch)]
        tokens = sum(len(ids) - 1 for ids in drawn)
        # As many forwards on each rank: under ZeRO-3 each is a collective.
        [update] = plan([len(ids) for ids in drawn], world=learner.world, budget=self._budget)
        share = 0.0
        for micro in update.ranks[rank]:
            ids, mask = (x.to(learner.device) for x in padded([drawn[row] for row in micro]))
            value = (self.loss(learner, ids, mask) * mask).sum() / tokens
            learner.backward(coef * value)
            share += float(value.detach())
        return share

    def loss(self, learner: Any, ids_BL: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Nats `[B, L - 1]` at each token after the first: of it, or from the teacher. mask: which are
        there."""
        position = torch.arange(1, ids_BL.shape[1], device=learner.device).expand(mask_BT.shape)
        if self._teacher is None:
            return -learner.forward(ids_BL, position, mask_BT, 1.0).logp
        taught = self._teacher.taught(ids_BL, position, mask_BT)
        return learner.forward(ids_BL, position, mask_BT, 1.0, None, taught).teacher_kl


def padded(texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids `[B, L]`, which tokens after the first are there `[B, L - 1]`); of no text, none of one."""
    longest = max((len(ids) for ids in texts), default=2)
    ids = torch.zeros(max(1, len(texts)), longest, dtype=torch.int64)
    mask = torch.zeros(max(1, len(texts)), longest - 1, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text) - 1] = True
    return ids, mask
