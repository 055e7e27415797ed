"""KL from a teacher's distribution over the vocabulary to the policy's, without a float32 `[N, V]` tensor.

As the head's own log-probs (`head.py`): in tiles, with a gradient by hand. The teacher is data: its hidden
states and head come from a frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_TILE_BYTES = 3 * 2**20
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Taught:
    """A teacher on the same positions. hidden: `[N, H']`; weight: its head `[V, H']`; top_k: so many of its
    likeliest tokens and the rest as one, 0: all of them."""

    hidden: torch.Tensor
    weight: torch.Tensor
    top_k: int = 0


class _TeacherKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        their_NH: torch.Tensor,
        their_VH: torch.Tensor,
        temperature: float,
        top_k: int,
    ) -> torch.Tensor:
        kl = torch.empty(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
        for tile in _tiles(len(hidden_NH), weight_VH):
            q = _logp(hidden_NH[tile], weight_VH, temperature)
            p = _logp(their_NH[tile], their_VH, temperature)
            kl[tile] = _kl(p, q, top_k)
        ctx.save_for_backward(hidden_NH, weight_VH, their_NH, their_VH)
        ctx.temperature, ctx.top_k = temperature, top_k
        return kl

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        [grad_N] = grads
        hidden_NH, weight_VH, their_NH, their_VH = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if needs_weight else None
        for tile in _tiles(len(hidden_NH), weight_VH):
            q = _logp(hidden_NH[tile], weight_VH, ctx.temperature)
            p = _logp(their_NH[tile], their_VH, ctx.temperature)
            slope = _slope(p, q, ctx.top_k) * (grad_N[tile, None] / ctx.temperature)
            slope = slope.to(hidden_NH.dtype)
            if grad_hidden is not None:
                grad_hidden[tile] = slope @ weight_VH
            if grad_weight is not None:
                grad_weight += (slope.T @ hidden_NH[tile]).float()
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VH.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def teacher_kl(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, teacher: Taught, temperature: float = 1.0
) -> torch.Tensor:
    """`KL(teacher || policy)` of each position, nats float32 `[N]`, both at `temperature`; differentiable
    in hidden and weight. With `top_k` a lower bound of it, at least 0: the KL of the two distributions over
    the teacher's k likeliest tokens and "any other".

    Raises ValueError: vocabularies of different sizes, or other positions.
    """
    if weight_VH.shape[0] != teacher.weight.shape[0] or len(hidden_NH) != len(teacher.hidden):
        raise ValueError(
            f"the teacher has {teacher.weight.shape[0]} tokens on {len(teacher.hidden)} positions, the "
            f"policy {weight_VH.shape[0]} on {len(hidden_NH)}; they must be the same"
        )
    top_k = teacher.top_k if teacher.top_k < weight_VH.shape[0] else 0
    return _TeacherKL.apply(
        hidden_NH, weight_VH, teacher.hidden, teacher.weight, temperature, top_k
    )


def _tiles(count: int, weight_VH: torch.Tensor) -> list[slice]:
    fits = _CHUNK if weight_VH.device.type != "cpu" else _TILE_BYTES // (4 * weight_VH.shape[0])
    size = max(1, min(fits, _CHUNK))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _logp(hidden: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    return ((hidden @ weight.T).float() / temperature).log_softmax(-1)


def _rest(logp: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Log of what is left beside the tokens `top`: `[n, 1]`, by a sum of the others, not by 1 - x."""
    return logp.scatter(1, top, float("-inf")).logsumexp(-1, keepdim=True)


def _kl(p: torch.Tensor, q: torch.Tensor, top_k: int) -> torch.Tensor:
    if not top_k:
        return (p.exp() * (p - q)).sum(-1)
    top = p.topk(top_k, dim=-1).indices
    ps, qs = p.gather(1, top), q.gather(1, top)
    p_rest, q_rest = _rest(p, top), _rest(q, top)
    return (ps.exp() * (ps - qs)).sum(-1) + (p_rest.exp() * (p_rest - q_rest)).squeeze(1)


def _slope(p: torch.Tensor, q: torch.Tensor, top_k: int) -> torch.Tensor:
    """The derivative of `_kl` in the policy's logits: `q - p`; beside the top tokens p is shaped as q."""
    if not top_k:
        return q.exp() - p.exp()
    top = p.topk(top_k, dim=-1).indices
    aim = (q + _rest(p, top) - _rest(q, top)).scatter(1, top, p.gather(1, top))
    return q.exp() - aim.exp()
