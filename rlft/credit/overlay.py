"""A number of the algorithm's own on the first steps of some rows, other credit everywhere else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlft.credit.decision import Credit, Seen


@dataclass(frozen=True, slots=True)
class Overlay:
    """`beneath`, with each row's number in place of its advantage on the first `window + 1` steps.

    Rows whose number is NaN keep what lies beneath; a row shorter than the window has the number on each
    of its steps. The value's target is that of `beneath` everywhere: the number compares sets of
    episodes, and says nothing of what reward is to come. whiten: each of the two kinds by itself is
    given deviation 1 over the batch, what lies beneath also mean 0.

    Source: polychromic PPO (arXiv 2509.25424, algorithm 2): window W is the action at the rollout state
    and the next W.
    """

    beneath: Credit
    window: int = 5
    whiten: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(getattr(self.beneath, "needs", ()))

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        adv_BT, target_BT = self.beneath(seen)
        assert seen.number is not None
        count_BT = seen.mask.cumsum(1)
        over_BT = seen.mask & (count_BT <= self.window + 1) & ~seen.number.isnan()[:, None]
        number_BT = seen.number[:, None].expand_as(adv_BT)
        if self.whiten:
            rest = adv_BT[seen.mask & ~over_BT]
            if len(rest) > 1:
                adv_BT = (adv_BT - rest.mean()) / (rest.std() + 1e-6)
            own = number_BT[over_BT]
            if len(own) > 1:
                number_BT = number_BT / (own.std() + 1e-6)
        return torch.where(over_BT, number_BT, adv_BT) * seen.mask, target_BT
