"""The critic's loss: squared error to its target, near what it said before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from rlft.losses.aggregate import masked
from rlft.losses.correction import require_range
from rlft.types import Batch, PolicyOut


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """`max((V - R)^2, (V' - R)^2) / 2` with `V'` the value, at most `clip` away from the old one.

    clip: above 0, in units of reward, or None for plain squared error. The larger of the two errors
    counts, so a value that has moved by more than `clip` towards its target gets no further gradient.

    Source: the PPO implementation of OpenAI's baselines (not the paper); OpenRLHF and verl have it
    with 0.2 and 0.5. Departure: none.
    """

    needs: ClassVar[tuple[str, ...]] = ("value",)

    clip: float | None = 0.2

    def __post_init__(self) -> None:
        if self.clip is not None:
            require_range("value_clip", self.clip, math.ulp(0.0), math.inf)

    def __call__(
        self, out: PolicyOut, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `[B, T]`, 0 with zero gradient where masked, and the diagnostic `value/clip_fraction`.

        Raises ValueError: no value, target or old value, or one of another shape.
        """
        if out.value is None or batch.ret is None or batch.old_value is None:
            raise ValueError("ValueLoss needs out.value, batch.ret and batch.old_value: a critic.")
        value_BT = masked("value", out.value, batch.mask)
        ret_BT = masked("ret", batch.ret, batch.mask).detach()
        error_BT = (value_BT - ret_BT) ** 2
        if self.clip is None:
            return error_BT / 2, {"value/clip_fraction": torch.zeros_like(ret_BT)}
        old_BT = masked("old_value", batch.old_value, batch.mask).detach()
        near_BT = value_BT.clamp(old_BT - self.clip, old_BT + self.clip)
        clipped_BT = (near_BT - ret_BT) ** 2
        held_BT = (clipped_BT > error_BT).to(ret_BT.dtype)
        return torch.maximum(error_BT, clipped_BT) / 2, {"value/clip_fraction": held_BT.detach()}
