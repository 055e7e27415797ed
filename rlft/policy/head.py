"""Log-probability and entropy of chosen tokens, without a float32 `[N, V]` tensor.

The output head runs on trained positions only, in chunks, inside the module that DeepSpeed wraps
(under ZeRO-3 its weight exists only there). The gradient is written by hand: autograd would keep
several `[N, V]` float32 tensors alive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_CHUNK = 512
"""Positions per chunk: 512 x 50k float32 logits are 100 MB, and larger was not faster on a CPU."""

_KEEP_BYTES = 512 * 2**20
"""Logits are kept, in the model's dtype, for the backward pass up to this size; beyond it they are
computed again. Keeping them saves a sixth of the head's arithmetic and changes no bit of the result."""


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
        kept: list[torch.Tensor] = []
        keep = num * vocabulary * hidden_NH.element_size() <= _KEEP_BYTES
        for start in range(0, num, _CHUNK):
            part = slice(start, min(start + _CHUNK, num))
            raw = hidden_NH[part] @ weight_VH.T
            logits = raw.float() / temperature if temperature != 1 else raw.float()
            lse[part] = torch.logsumexp(logits, dim=-1)
            chosen = logits.gather(1, actions_N[part, None]).squeeze(1)
            logp[part] = chosen - lse[part]
            probabilities = torch.exp(logits - lse[part, None])
            entropy[part] = lse[part] - torch.linalg.vecdot(probabilities, logits)
            if keep:
                kept.append(raw)
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
        for index, start in enumerate(range(0, hidden_NH.shape[0], _CHUNK)):
            part = slice(start, min(start + _CHUNK, hidden_NH.shape[0]))
            raw = ctx.kept[index] if ctx.kept else hidden_NH[part] @ weight_VH.T
            logits = raw.float() / ctx.temperature if ctx.temperature != 1 else raw.float()
            all_logp = logits - lse[part, None]  # not in place: for float32 `raw` is `logits`
            probabilities = all_logp.exp()
            # d logp[a] / d logits = onehot(a) - p ; d H / d logits = -p (log p + H)
            scale = grad_logp_N[part, None]
            if with_entropy:
                grad = all_logp.add_(entropy[part, None]).mul_(-grad_entropy_N[part, None])
                grad = grad.sub_(scale).mul_(probabilities)
            else:
                grad = probabilities.mul_(-scale)
            grad.scatter_add_(1, actions_N[part, None], scale)
            if ctx.temperature != 1:
                grad.div_(ctx.temperature)
            low = grad.to(weight_VH.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = low @ weight_VH
            if needs_weight:
                # Sum over chunks in float32: bf16 partial sums would depend on the chunking.
                product = (low.T @ hidden_NH[part]).float()
                grad_weight = product if grad_weight is None else grad_weight.add_(product)
        ctx.kept = []
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VH.dtype)
        return grad_hidden, grad_weight, None, None


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
        self, hidden_NH: torch.Tensor, actions_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return chosen_logp(hidden_NH, self.weight, actions_N, temperature)
