"""Muon: momentum whose singular values are made equal (Jordan et al. 2024), for the matrices of the layers.

M ← μM + G; U = G + μM (Nesterov) or M; θ ← θ − lr (s · NS(U) + wd · θ), with NS five Newton-Schulz steps
and s = 0.2 √max(rows, columns), which makes an update as large as AdamW's (arXiv 2502.16982), so that one
learning rate serves both; `scale: rows` is √max(1, rows/columns) instead. Embeddings, head, norms and
biases are AdamW's. `bits: 8` keeps the momentum in blocks of 2048 as int8 with one scale each
(arXiv 2509.23106), a quarter of the memory.

Orthogonalising needs whole matrices, and ZeRO cuts them anywhere: here the momentum stays cut, and each
U is put together for its update by a sum over ranks. That is one all-reduce a matrix and step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rlft.errors import ConfigError
from rlft.learning.pieces import Flat
from rlft.learning.trained_part import Optimizing, is_layer_matrix

BLOCK = 2048
_NS5 = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Muon(Optimizing):
    """momentum: μ; bits: of a stored momentum, 32 or 8; ns_steps: Newton-Schulz steps."""

    momentum: float = 0.95
    nesterov: bool = True
    bits: Literal[8, 32] = 32
    ns_steps: int = 5
    scale: Literal["adamw", "rows"] = "adamw"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.ns_steps < 1:
            raise ConfigError(
                f"momentum {self.momentum}, ns_steps {self.ns_steps}: expected 0 <= momentum < 1 and at "
                f"least 1 step"
            )

    def made(self, named: Mapping[str, torch.nn.Parameter], settings: Any) -> torch.optim.Optimizer:
        shapes = {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in named.items()}
        matrices = [p for n, p in named.items() if is_layer_matrix(n, shapes[n])]
        others = [p for n, p in named.items() if not is_layer_matrix(n, shapes[n])]
        if not matrices:
            raise ConfigError(
                "learner.optimizer=muon: no matrix of a layer is trained; use adamw, or train one"
            )
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        return MuonAndAdamW([g for g in groups if g["params"]], self, settings)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for groups that say so, AdamW for the others. `layout` is given once DeepSpeed has replaced
    the parameters by flat ones."""

    def __init__(self, params: Any, muon: Muon, settings: Any) -> None:
        keys = {k: getattr(settings, k) for k in ("betas", "eps", "weight_decay")}
        super().__init__(params, {"lr": 0.0, "muon": False, **keys})
        self._muon = muon
        self.layout: Mapping[int, Flat] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. A collective."""
        assert closure is None, "nothing here evaluates a loss again"
        if not self.layout:
            return  # DeepSpeed tries a step while it is built, at some stages
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                if group["muon"]:
                    self._orthogonal(tensor, group)
                else:
                    _adamw(tensor, self.state[tensor], group)

    def _orthogonal(self, tensor: torch.Tensor, group: Mapping[str, Any]) -> None:
        state, flat, muon = self.state[tensor], self.layout[id(tensor)], self._muon
        grad = tensor.grad.reshape(-1).float()  # type: ignore[union-attr]
        lengths = [(p.at, p.length) for p in flat.pieces]
        moving = _read(state, grad, lengths).mul_(muon.momentum).add_(grad)
        _write(state, moving, muon.bits, lengths)
        update = grad.add(moving, alpha=muon.momentum) if muon.nesterov else moving
        weights = tensor.view(-1)
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        for name, shape in flat.shapes.items():
            whole = orthogonal(flat.whole(name, update), muon.ns_steps).reshape(-1)
            size = _scale(muon.scale, shape)
            for p in flat.pieces:
                if p.name == name:
                    mine = whole[p.start : p.start + p.length]
                    weights[p.at : p.at + p.length].sub_(mine, alpha=group["lr"] * size)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state; torch casts all of it to float32, which holds an int8 exactly."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "q" in state:
                state["q"] = state["q"].to(torch.int8)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrix `[n, m]` with its singular values brought near 1 (0.7 to 1.2): quintic Newton-Schulz
    X ← aX + (bA + cA²)X, A = XXᵀ, from X of Frobenius norm 1. Zero stays zero."""
    a, b, c = _NS5
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def _scale(kind: str, shape: tuple[int, ...]) -> float:
    rows, columns = shape
    return 0.2 * max(rows, columns) ** 0.5 if kind == "adamw" else max(1.0, rows / columns) ** 0.5


def quantised(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 `[N]`, scale float32 `[ceil(N / 2048)]`): linear, absmax of each block over 127. A block of
    zeros has scale 0 and comes back as zeros."""
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1) / 127
    q = (blocks / torch.where(scale > 0, scale, 1.0)[:, None]).round_().clamp_(-127, 127)
    return q.to(torch.int8).view(-1)[: len(values)].clone(), scale


def dequantised(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What `quantised` stored, float32; each value is off by at most half its block's scale."""
    blocks = torch.nn.functional.pad(q.float(), (0, -len(q) % BLOCK)).view(-1, BLOCK)
    return (blocks * scale[:, None]).view(-1)[: len(q)].clone()


def _read(
    state: Mapping[str, Any], like: torch.Tensor, stretches: list[tuple[int, int]]
) -> torch.Tensor:
    """The momentum, float32, laid out like `like`. stretches: (start, length) of each parameter."""
    if "momentum" in state:
        return state["momentum"]
    moving, block = torch.zeros_like(like), 0
    for at, length in stretches if "q" in state else ():
        blocks = -(-length // BLOCK)
        scale = state["scale"][block : block + blocks]
        moving[at : at + length] = dequantised(state["q"][at : at + length], scale)
        block += blocks
    return moving


def _write(
    state: dict[str, Any], momentum: torch.Tensor, bits: int, stretches: list[tuple[int, int]]
) -> None:
    """Stores the momentum. Blocks begin anew with each parameter: one scale never serves two."""
    if bits == 32:
        state["momentum"] = momentum
        return
    q, scales = torch.zeros_like(momentum, dtype=torch.int8), [momentum.new_zeros(0)]
    for at, length in stretches:
        q[at : at + length], scale = quantised(momentum[at : at + length])
        scales.append(scale)
    state["q"], state["scale"] = q, torch.cat(scales)


def _adamw(tensor: torch.Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(tensor, dtype=torch.float32)
        state["exp_avg_sq"] = torch.zeros_like(tensor, dtype=torch.float32)
    state["step"] += 1
    steps, (beta1, beta2) = float(state["step"]), group["betas"]
    grad = tensor.grad.float()  # type: ignore[union-attr]
    state["exp_avg"].lerp_(grad, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    size = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt_().add_(group["eps"])
    tensor.mul_(1 - group["lr"] * group["weight_decay"])
    tensor.addcdiv_(state["exp_avg"], size, value=-group["lr"] / (1 - beta1**steps))
