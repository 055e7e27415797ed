"""Staying near a teacher: the exact KL of each state from its distribution to the policy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.losses.aggregate import masked
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class KLToTeacher:
    """`KL(teacher(.|s) || pi(.|s))` of each decision, nats `[B, T]`, 0 with zero gradient where masked.

    The teacher is frozen, so its distribution is data. On rollout states this is kickstarting, on a
    fixed buffer behavioural cloning. Source: arXiv 2402.02868, section 2 and its code
    (`_distillation_loss`); its appendix C.2 prints the other direction, which the code does not use.
    Raises ValueError: nobody evaluated a teacher.
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    def __call__(self, out: PolicyOut, batch: Batch) -> torch.Tensor:
        if out.teacher_kl is None:
            raise ValueError(
                "KLToTeacher needs out.teacher_kl, got None: evaluate a teacher first."
            )
        return masked("teacher_kl", out.teacher_kl, batch.mask)
