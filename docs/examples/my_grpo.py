"""GRPO that unlearns less than it learns: advantages below zero are scaled down."""

from dataclasses import dataclass

import torch

from algos.grpo import GRPO
from rlft.credit import group_relative
from rlft.filters import rewards_of


@dataclass(frozen=True)
class GentleGRPO(GRPO):
    """negative: what an advantage below zero is multiplied by."""

    negative: float = 0.5

    def learn(self, run, groups):
        adv_B = group_relative(*rewards_of(groups), std=self.std)
        adv_B = torch.where(adv_B < 0, adv_B * self.negative, adv_B)
        return run.fit(groups, adv_B, aggregate=self.aggregate)
