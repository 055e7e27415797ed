"""GRPO that unlearns less than it learns: advantages below zero are scaled down."""

from dataclasses import dataclass

import torch

from algos.grpo import GRPO
from rlft.credit.reads import advantages


@dataclass(frozen=True)
class GentleGRPO(GRPO):
    """negative: what an advantage below zero is multiplied by."""

    negative: float = 0.5

    def learn(self, run, groups):
        adv_B = advantages(self.credit(), groups)
        adv_B = torch.where(adv_B < 0, adv_B * self.negative, adv_B)
        return run.fit(groups, adv_B, aggregate=self.aggregate)
