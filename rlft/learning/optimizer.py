"""A guard for the optimizer of ZeRO stage 0 in float32, where DeepSpeed leaves finiteness to us.

At every other stage DeepSpeed measures the gradient's norm, clips, and skips a step whose norm is not
finite. The guard does the same under the attribute names that its engine reads (`overflow`,
`_global_grad_norm`), so that the learner need not know which of the two it talks to.
"""

from __future__ import annotations

from typing import Any

import torch


def guard(optimizer: Any, max_grad_norm: float) -> None:
    """Makes `optimizer.step` clip by global norm (0: not) and skip a gradient that is not finite.

    Gradients were averaged over ranks before, so every rank decides alike.
    """
    unguarded = optimizer.step
    optimizer.overflow, optimizer._global_grad_norm = False, 0.0

    @torch.no_grad()
    def step(*args: Any, **keys: Any) -> None:
        held = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in held])
        optimizer._global_grad_norm = float(norm)
        optimizer.overflow = not bool(torch.isfinite(norm))
        if optimizer.overflow:
            return
        if max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(held, max_grad_norm, norm)
        with torch.enable_grad():
            unguarded(*args, **keys)

    optimizer.step = step
