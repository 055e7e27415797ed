"""Log-probability and entropy of chosen tokens, without a float32 `[N, V]` tensor.

The output head runs on trained positions only, in chunks, inside the module that DeepSpeed wraps
(under ZeRO-3 its weight exists only there). The gradient is written by hand: autograd would keep
several `[N, V]` float32 tensors alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rlft.policy.distil import Taught, teacher_kl

_CHUNK = 512
"""Positions per matrix product: larger was not faster on a CPU."""

_KEEP_BYTES = 512 * 2**20
"""Logits are kept, in the model's dtype, for the backward pass up to this size; beyond it they are
computed again. Keeping them saves a sixth of the head's arithmetic and changes no bit of the result."""

_TILE_BYTES = 3 * 2**20
"""Float32 logits that are worked on at a time on a CPU: what stays in its cache. Each pass over a
`[512, V]` tensor would go through memory, and there are a dozen."""


class _ChosenLogp(torch.autograd.Function):
    """logp and entropy `[N]` of `actions [N]` under `softmax(hidden @ weight.T / temperature)`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        actions_N: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num, vocabulary = hidden_NH.shape[0], weight_VH.shape[0]
        logp = torch.empty(num, dtype=torch.float32, device=hidden_NH.device)
        entropy, lse = torch.empty_like(logp), torch.empty_like(logp)
        keep = num * vocabulary * hidden_NH.element_size() <= _KEEP_BYTES
        kept = hidden_NH.new_empty(num, vocabulary) if keep else None
        for part in _parts(0, num, _CHUNK):
            raw = hidden_NH[part] @ weight_VH.T if kept is None else kept[part]
            if kept is not None:
                torch.mm(hidden_NH[part], weight_VH.T, out=raw)
            for tile in _tiles(part, raw):
                logits = _logits(raw[tile.start - part.start : tile.stop - part.start], temperature)
                chosen = logits.gather(1, actions_N[tile, None]).squeeze(1)
                top = logits.amax(dim=-1, keepdim=True)
                weights = (logits - top).exp_()
                total = weights.sum(dim=-1)
                lse[tile] = top.squeeze(1) + total.log()
                logp[tile] = chosen - lse[tile]
                entropy[tile] = lse[tile] - torch.linalg.vecdot(weights, logits) / total
        ctx.save_for_backward(hidden_NH, weight_VH, actions_N, lse, entropy)
        ctx.kept, ctx.temperature = kept, temperature
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        grad_logp_N, grad_entropy_N = grads
        hidden_NH, weight_VH, actions_N, lse, entropy = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight = None
        with_entropy = grad_entropy_N is not None and bool(grad_entropy_N.any())
        num = hidden_NH.shape[0]
        # Kept logits make room for their own gradient, which then takes one product over all of N.
        for part in _parts(0, num, _CHUNK if ctx.kept is None else num):
            raw = hidden_NH[part] @ weight_VH.T if ctx.kept is None else ctx.kept
            for tile in _tiles(part, raw):
                here = raw[tile.start - part.start : tile.stop - part.start]
                logits = _logits(here, ctx.temperature)
                # d logp[a] / d logits = onehot(a) - p ; d H / d logits = -p (log p + H)
                scale = grad_logp_N[tile, None]
                all_logp = logits - lse[tile, None]
                if with_entropy:
                    probabilities = all_logp.exp()
                    grad = all_logp.add_(entropy[tile, None]).mul_(-grad_entropy_N[tile, None])
                    grad = grad.sub_(scale).mul_(probabilities)
                else:
                    grad = all_logp.exp_().mul_(-scale)
                grad.scatter_add_(1, actions_N[tile, None], scale)
                if ctx.temperature != 1:
                    grad.div_(ctx.temperature)
                here.copy_(grad)
            if grad_hidden is not None:
                torch.mm(raw, weight_VH, out=grad_hidden[part])
            if needs_weight:
                # Sum over chunks in float32: bf16 partial sums would depend on the chunking.
                product = raw.T @ hidden_NH[part]
                if part.stop - part.start < num:
                    product = product.float()
                grad_weight = product if grad_weight is None else grad_weight.add_(product)
        ctx.kept = None
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VH.dtype)
        return grad_hidden, grad_weight, None, None


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    for at in range(start, stop, size):
        yield slice(at, min(at + size, stop))


def _tiles(part: slice, raw_NV: torch.Tensor) -> Iterator[slice]:
    """Rows of `part` that are worked on together."""
    fits = _CHUNK if raw_NV.device.type != "cpu" else _TILE_BYTES // (4 * raw_NV.shape[1])
    return _parts(part.start, part.stop, max(1, min(fits, _CHUNK)))


def _logits(raw_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Float32 logits; a float32 `raw_NV` itself at temperature 1, so nothing may write to it."""
    return raw_NV.float() / temperature if temperature != 1 else raw_NV.float()


def chosen_logp(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    actions_N: torch.Tensor,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32 `(logp [N], entropy [N])` in nats of `actions_N` (int64) under
    `softmax(hidden_NH @ weight_VH.T / temperature)`; differentiable in hidden and weight."""
    return _ChosenLogp.apply(hidden_NH, weight_VH, actions_N, temperature)


class LogProbHead(nn.Module):
    """Stands in for a language model's `lm_head`, under the same parameter name `weight`."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self,
        hidden_NH: torch.Tensor,
        actions_N: torch.Tensor,
        temperature: float,
        teacher: Taught | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """(logp `[N]`, entropy `[N]`), and the KL `[N]` from a teacher, if there is one."""
        found = chosen_logp(hidden_NH, self.weight, actions_N, temperature)
        if teacher is None:
            return found
        return *found, teacher_kl(hidden_NH, self.weight, teacher, temperature)
