"""Layers that are trained through something beside their weights, and what their weights then are.

A wrapped layer has the original under `base_layer`, its own parameters beside it, and a `merge` that
works them into the original's weights: every layer of peft's has, and ours do alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Wrapped(nn.Module):
    """A linear layer with something trained beside it. The original is frozen."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.merged_adapters: list[str] = []

    def get_base_layer(self) -> nn.Linear:
        return self.base_layer

    def change(self) -> torch.Tensor:
        """What is added to the original's weight, `[out, in]`."""
        raise NotImplementedError

    def merge(self) -> None:
        """Adds the change to the original's weight, in float32."""
        weight = self.base_layer.weight
        weight.data.copy_(weight.data.float() + self.change().float())


def wrapped_layers(causal: nn.Module) -> tuple[set[int], dict[str, Any]]:
    """(ids of the parameters beside original layers, plain name of an original weight -> its layer)."""
    own: set[int] = set()
    layers: dict[str, Any] = {}
    for name, module in causal.named_modules():
        if not (hasattr(module, "base_layer") and callable(getattr(module, "merge", None))):
            continue
        base: nn.Module = module.base_layer
        inside = {id(p) for p in base.parameters()}
        own |= {id(p) for p in module.parameters()} - inside
        for attribute, _ in base.named_parameters(recurse=False):
            layers[f"{name}.{attribute}"] = module
    return own, layers


@torch.no_grad()
def merged(layer: Any) -> dict[str, torch.Tensor]:
    """The weights (and bias) of a wrapped layer with what is beside it worked in; the layer is left bit
    for bit as it was, which merging and subtracting again would not do."""
    base = layer.get_base_layer()
    held = {n: (p.data, p.data.clone()) for n, p in base.named_parameters(recurse=False)}
    try:
        layer.merge()
        now = layer.get_base_layer()
        return {n: p.detach().clone() for n, p in now.named_parameters(recurse=False)}
    finally:
        if layer.get_base_layer() is not base:  # one kind swaps the layers
            layer.unmerge()
        for name, parameter in base.named_parameters(recurse=False):
            tensor, values = held[name]
            parameter.data = tensor
            tensor.copy_(values)
        layer.merged_adapters.clear()


def linear_names(lm: nn.Module) -> list[str]:
    """The last parts of the names of linear layers; the output head is none of them here."""
    return sorted({n.rsplit(".", 1)[-1] for n, m in lm.named_modules() if isinstance(m, nn.Linear)})


def wrap(lm: nn.Module, name: str, layer: Wrapped) -> None:
    """Puts `layer` in the place of the module called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(lm.get_submodule(parent), child, layer)
