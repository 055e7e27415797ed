"""Process supervision: every step of an answer has a reward of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlft.credit.decision import RowSteps
from rlft.credit.group import group_relative


@dataclass(frozen=True, slots=True)
class StepAdvantages:
    """Advantages of steps, an entry per member; `fit` takes them in place of one number a member.

    A token's advantage is the sum over its own step and those after it.
    """

    rows: tuple[RowSteps, ...]

    def __getitem__(self, keep_B: torch.Tensor) -> StepAdvantages:
        """Those of the members that are kept (bool `[B]`)."""
        kept = zip(self.rows, keep_B.tolist(), strict=True)
        return StepAdvantages(tuple(row for row, keep in kept if keep))


def process(
    steps: Sequence[RowSteps], group_B: torch.Tensor, *, eps: float = 1e-6
) -> StepAdvantages:
    """Each step's reward, by mean and deviation (n - 1) over *all* steps of its group.

    An answer with one step gets what `group_relative` gives. steps: of each answer, as its reward
    function returned them; an answer without is one step worth its reward. Give `drop_flat: false`:
    answers of equal reward may differ in their steps.

    Source: GRPO with process supervision (DeepSeekMath, arXiv 2402.03300, section 4.1.3).
    """
    counts = torch.tensor([len(row) for row in steps])
    flat = torch.tensor([value for row in steps for _, value in row], dtype=torch.float64)
    z = iter(group_relative(flat, group_B.repeat_interleave(counts), eps=eps).tolist())
    return StepAdvantages(tuple(tuple((end, next(z)) for end, _ in row) for row in steps))
