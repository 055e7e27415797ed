"""The critic of one rank: a model of its own, with its own DeepSpeed engine and optimizer."""

from __future__ import annotations

import torch

from rlft.batch import Inputs
from rlft.config import Config, Freeze
from rlft.learning.learner import Trained
from rlft.policy.value import LMValue


class Critic(Trained):
    """Trained beside the policy, at the same ZeRO stage; never published."""

    def __init__(self, cfg: Config, model: LMValue) -> None:
        super().__init__(cfg, model)

    def _rules(self) -> list[Freeze]:
        return []  # its weights have names of their own

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Values float32 `[B, T]`, 0 where masked."""
        return self.engine(inputs.ids, inputs.position, inputs.mask)
