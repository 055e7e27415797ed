"""What is done to a gradient parameter by parameter, just before it is used.

Clipping each to a norm of its own (component-wise; arXiv 2210.10325):
g_k ← g_k · min(1, c / ‖g_k‖) for every parameter k, where global clipping scales all of them by one
number that the largest decides. The paper's threshold is not read; c is `learner.max_grad_norm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlft.learning.pieces import Flat
from rlft.learning.shards import Intercept


def clip_by_parameter(
    intercept: Intercept, optimizer: Any, layout: Mapping[int, Flat], limit: float
) -> None:
    """Clips each parameter's gradient to the norm `limit` before `optimizer` steps, and before anything
    else is added to it: the pull of an anchor is not clipped."""

    def clip(stepped: set[int]) -> None:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if id(tensor) in stepped:
                    _clip(layout[id(tensor)], tensor.grad, limit)

    intercept.before.insert(0, clip)


@torch.no_grad()
def _clip(flat: Flat, grad: torch.Tensor, limit: float) -> None:
    squares = flat.square_norms(grad)
    entries = grad.view(-1)
    for piece in flat.pieces:
        norm = squares[piece.name] ** 0.5
        if norm > limit:
            entries[piece.at : piece.at + piece.length].mul_(limit / norm)


def push(optimizer: Any, layout: Mapping[int, Flat], ending: str, amount: float) -> None:
    """Makes `optimizer.step` first add `amount` to the gradient of weights whose name ends in `ending`:
    the gradient of a penalty on them, once per step whatever the number of micro-batches."""

    @torch.no_grad()
    def pushed(*_: Any) -> None:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    entries = tensor.grad.view(-1)
                    for piece in layout[id(tensor)].pieces:
                        if piece.name.endswith(ending):
                            entries[piece.at : piece.at + piece.length].add_(amount)

    optimizer.register_step_pre_hook(pushed)
