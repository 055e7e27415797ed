"""AdamW over chosen elements alone: the others are not read, not decayed and not written.

Weights and gradients of the chosen elements are taken out into short vectors, stepped, and put back; the
moments exist for them only. So what is not chosen stays bit for bit what it was, at every ZeRO stage,
whatever the weight decay. An element counts its own steps: one that is chosen late gets the bias
correction of its first step, where a common count would take its first steps three times too large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rlft.learning.pieces import Flat
from rlft.learning.trained_part import Seen, Trainable
from rlft.seeding import Key


class ChosenAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) of what `method` keeps. `layout` is given once DeepSpeed has
    replaced the parameters by flat ones."""

    def __init__(
        self,
        params: Any,
        method: Trainable,
        key: Key,
        *,
        betas: Any,
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(
            params, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self._method, self._key = method, key
        self.layout: Mapping[int, Flat] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of the chosen elements; chooses first where it is due. A collective."""
        assert closure is None, "nothing here evaluates a loss again"
        if not self.layout:
            return  # DeepSpeed tries a step while it is built, at some stages
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._step(tensor, group)

    def _step(self, tensor: torch.Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[tensor]
        taken = int(state.get("taken", 0))
        if not state or self._method.due(taken):
            self._choose(self.layout[id(tensor)], state, taken)
        state["taken"] = torch.tensor(float(taken + 1))
        kept = state["kept"].bool()
        weights, grads = tensor.view(-1), tensor.grad.reshape(-1)  # type: ignore[union-attr]
        w, g = weights[kept], grads[kept].float()
        first, second, age = state["exp_avg"], state["exp_avg_sq"], state["age"]
        beta1, beta2 = group["betas"]
        age.add_(1)
        first.lerp_(g, 1 - beta1)
        second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        size = (second / (1 - beta2**age)).sqrt_().add_(group["eps"])
        w.mul_(1 - group["lr"] * group["weight_decay"])
        w.sub_(group["lr"] * (first / (1 - beta1**age)) / size)
        weights[kept] = w

    def _choose(self, flat: Flat, state: dict[str, Any], taken: int) -> None:
        """Sets what is kept, and carries moments over: zero, and of age 0, where there were none."""
        mask = torch.zeros(flat.tensor.numel(), dtype=torch.bool, device=flat.tensor.device)
        shapes = {name: s for f in self.layout.values() for name, s in f.shapes.items()}
        for name in flat.shapes:
            seen = Seen(
                taken,
                self._key,
                shapes,
                lambda name=name: flat.whole(name, flat.tensor),  # type: ignore[misc]
                lambda name=name: flat.whole(name, flat.tensor.grad),  # type: ignore[misc,arg-type]
            )
            answer = self._method.kept(name, seen)
            for p in flat.pieces:
                if p.name == name:
                    here = slice(p.at, p.at + p.length)
                    if isinstance(answer, bool):
                        mask[here] = answer
                    else:
                        mask[here] = answer.reshape(-1)[p.start : p.start + p.length]
        for key in ("exp_avg", "exp_avg_sq", "age"):
            dense = torch.zeros(len(mask), dtype=torch.float32, device=mask.device)
            if state.get("kept") is not None:
                dense[state["kept"].bool()] = state[key]
            state[key] = dense[mask]
        state["kept"] = mask

    def kept_share(self) -> float:
        """The share of this rank's elements that are trained now; nan before the first step."""
        masks = [state["kept"] for state in self.state.values() if "kept" in state]
        total = sum(len(m) for m in masks)
        return sum(float(m.sum()) for m in masks) / total if total else float("nan")
