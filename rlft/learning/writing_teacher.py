"""A frozen language model that a learner is kept near: its hidden states on given positions.

A copy of its own in every rank, in the model's dtype, in eval mode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlft.config import Config
from rlft.packing import Packing
from rlft.policy.distil import Taught
from rlft.policy.lm import load_lm


class WritingTeacher:
    """term: `Kickstarting` or `TextReplay`, its teacher filled in."""

    def __init__(self, term: Any, cfg: Config, learner: Any) -> None:
        self._top_k = term.top_k
        self.policy = load_lm(Path(term.teacher), cfg.model.dtype)
        self.policy.to(learner.device).eval().requires_grad_(False)

    @torch.no_grad()
    def taught(
        self,
        ids_BL: torch.Tensor,
        position_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        packing: Packing | None = None,
    ) -> Taught:
        """Its hidden states on the decisions of a micro-batch (see `LMPolicy`)."""
        hidden, *_ = self.policy.read(ids_BL, position_BT, mask_BT, packing)
        return Taught(hidden, self.policy.causal_lm().lm_head.weight, self._top_k)
