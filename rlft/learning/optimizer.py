"""AdamW for ZeRO stage 0 in float32, where DeepSpeed leaves gradient norm and finiteness to us.

At every other stage DeepSpeed measures the norm, clips, and skips a step whose norm is not finite.
Here this class does the same under the attribute names that its engine reads (`overflow`,
`_global_grad_norm`), so that the learner need not know which of the two it talks to.
"""

from __future__ import annotations

from typing import Any

import torch


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips by global norm and skips a step whose gradient is not finite."""

    def __init__(self, params: Any, *, max_grad_norm: float, **keys: Any) -> None:
        super().__init__(params, **keys)
        self.max_grad_norm = max_grad_norm
        self.overflow = False
        self._global_grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; gradients were already averaged over ranks, so every rank decides alike."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not bool(torch.isfinite(norm))
        if self.overflow:
            return
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        super().step()
