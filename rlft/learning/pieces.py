"""Where the elements of each parameter lie in what the optimizer steps.

At ZeRO stage 0 in float32 that is the parameter. Else it is a flat float32 tensor, of which each rank
holds a part: a parameter may be cut anywhere. Choosing weights, norms by parameter and whole matrices
need the way back, and DeepSpeed keeps it in different places at different stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a parameter: its elements start ... start + length, at `at` of the flat tensor."""

    name: str
    start: int
    length: int
    at: int


@dataclass(frozen=True)
class Flat:
    """A tensor that the optimizer steps. shapes: of every parameter in it on any rank, by name, in an
    order that all ranks share; pieces: what this rank holds; shared: whether others hold the rest;
    device: where ranks can exchange tensors, which is not where an offloaded one lies."""

    tensor: torch.Tensor
    shapes: Mapping[str, tuple[int, ...]]
    pieces: tuple[Piece, ...]
    shared: bool
    device: torch.device

    def whole(self, name: str, of: torch.Tensor) -> torch.Tensor:
        """The parameter `name` of `of`, a tensor laid out like this one (weights, gradients, ...), in
        its own shape and memory. A collective if the layout is shared."""
        shape = self.shapes[name]
        full = torch.zeros(math.prod(shape), dtype=torch.float32, device=self.device)
        flat = of.reshape(-1)
        for piece in self.pieces:
            if piece.name == name:
                full[piece.start : piece.start + piece.length] = flat[
                    piece.at : piece.at + piece.length
                ]
        if self.shared:
            dist.all_reduce(full)
        return full.view(shape).to(of.device)

    def square_norms(self, of: torch.Tensor) -> dict[str, float]:
        """The squared norm of each parameter of `of`, over all ranks. A collective if shared."""
        places = {name: i for i, name in enumerate(self.shapes)}
        sums = torch.zeros(len(places), dtype=torch.float64, device=self.device)
        flat = of.reshape(-1)
        for p in self.pieces:
            sums[places[p.name]] += flat[p.at : p.at + p.length].double().square().sum()
        if self.shared:
            dist.all_reduce(sums)
        return dict(zip(places, sums.tolist(), strict=True))


def flats(engine: Any, named: Mapping[str, torch.nn.Parameter]) -> dict[int, Flat]:
    """The tensors that the engine's inner optimizer steps, by `id`. named: what is trained."""
    names = {id(p): name for name, p in named.items()}
    outer, device = engine.optimizer, engine.device
    shared = dist.get_world_size() > 1
    if hasattr(outer, "fp32_partitioned_groups_flat"):
        found = [
            _stage3(outer, tensor, group, names, shared, device)
            for tensor, group in zip(
                outer.fp32_partitioned_groups_flat, outer.fp16_groups, strict=True
            )
        ]
    elif hasattr(outer, "fp32_groups"):  # bfloat16 at stage 0: a float32 copy of each parameter
        pairs = [
            pair
            for group, copies in zip(outer.fp16_groups, outer.fp32_groups, strict=True)
            for pair in zip(group, copies, strict=True)
        ]
        found = [_alone(copy, names[id(p)], device) for p, copy in pairs]
    elif hasattr(outer, "optimizer"):
        groups = outer.bit16_groups if hasattr(outer, "bit16_groups") else outer.bf16_groups
        steps = [group["params"][0] for group in outer.optimizer.param_groups]
        found = [_linked(t, g, names, shared, device) for t, g in zip(steps, groups, strict=True)]
    else:
        found = [_alone(p, name, device) for name, p in named.items()]
    return {id(flat.tensor): flat for flat in found}


def _alone(tensor: torch.Tensor, name: str, device: torch.device) -> Flat:
    """Stage 0: the whole parameter, the same on every rank."""
    piece = Piece(name, 0, tensor.numel(), 0)
    return Flat(tensor, {name: tuple(tensor.shape)}, (piece,), False, device)


def _linked(
    tensor: torch.Tensor,
    group: Sequence[Any],
    names: Mapping[int, str],
    shared: bool,
    device: torch.device,
) -> Flat:
    """Stages 1 and 2: each parameter knows its fragment, if it has one here."""
    shapes = {names[id(p)]: tuple(p.shape) for p in group}
    pieces = []
    for p in group:
        link = getattr(p, "_hp_mapping", None)
        if link is not None:
            here, there = link.lp_fragment_address, link.hp_fragment_address
            pieces.append(Piece(names[id(p)], here.start, here.numel, there.start))
    return Flat(tensor, shapes, tuple(pieces), shared, device)


def _stage3(
    outer: Any,
    tensor: torch.Tensor,
    group: Sequence[Any],
    names: Mapping[int, str],
    shared: bool,
    device: torch.device,
) -> Flat:
    """Every parameter is cut into equal parts, one a rank; the last ones may be padding."""
    shapes = {names[id(p)]: tuple(p.ds_shape) for p in group}
    pieces = []
    for p in group:
        _, at, part = outer.grad_position[outer.get_param_id(p)]
        start = part * dist.get_rank()
        length = min(part, p.ds_numel - start)
        if length > 0:
            pieces.append(Piece(names[id(p)], start, length, at))
    return Flat(tensor, shapes, tuple(pieces), shared, device)
