"""Noise on a LoRA adapter's parameters, and the whole weights that engines are given for it.

What moves is A `[r, in]` and B `[out, r]`; what an engine multiplies with is `W = W_0 + scale B A`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from rlft.config import Lora

_A, _B = ".lora_A.", ".lora_B."


def of_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return _A in name or _B in name


def adapted(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(name of A, name of B) by the name of the weight that they add to."""
    return {f"{n.partition(_A)[0]}.weight": (n, n.replace(_A, _B)) for n in names if _A in n}


def with_adapter(
    start: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float
) -> torch.Tensor:
    """`W_0 + scale B A` in float32. start: as the model holds it, in its own dtype; scale: alpha / r."""
    return start.float() + scale * (up.float() @ down.float())


class WithoutAdapters:
    """An engine as a transport sees it, that is not handed the adapter's parameters."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._engine.load(pair for pair in tensors if not of_adapter(pair[0]))


def whole_weights(
    held: Mapping[str, torch.Tensor],
    adapter: Mapping[str, torch.Tensor],
    start: Any,
    lora: Lora,
    dtype: torch.dtype,
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor in `dtype`) of all weights under `adapter`. held: weights of now, of which those that
    an adapter adds to are made anew from start(name)."""
    pairs = adapted(adapter)
    for name, tensor in held.items():
        if name in pairs:
            down, up = (adapter[n] for n in pairs[name])
            tensor = with_adapter(start(name).to(dtype), down, up, lora.scale)
        yield name, tensor.to(dtype)
