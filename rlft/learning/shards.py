"""The shard of each trained parameter that this rank's optimizer moves, at every ZeRO stage.

Under ZeRO-3 a parameter is empty outside of its module's forward, so a sum over `model.parameters()` is 0
without a word; under ZeRO-1 and 2 each rank moves a part of what it holds. The optimizer inside DeepSpeed
sees the same everywhere: float32 tensors, each a shard of one parameter or of many, flat. A `Shard` says
where in them a parameter's part lies, and `Intercept` is called with their gradients, just before a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Shard:
    """A parameter's part on this rank. held: what the optimizer moves, float32; offset: where in it, flat,
    the part lies; start, numel: which part of the parameter, flat."""

    name: str
    held: torch.Tensor
    offset: int
    start: int
    numel: int

    @property
    def theta(self) -> torch.Tensor:
        """The part itself `[numel]`, a view."""
        return self.held.detach().view(-1).narrow(0, self.offset, self.numel)

    @property
    def grad(self) -> torch.Tensor:
        """Its gradient `[numel]`, a view; only inside an `Intercept`."""
        assert self.held.grad is not None, "there is no gradient but before a step"
        return self.held.grad.view(-1).narrow(0, self.offset, self.numel)

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This part of a tensor of the parameter's shape, float32 `[numel]`, a copy."""
        flat = whole.detach().to(self.held.device, torch.float32).reshape(-1)
        return flat.narrow(0, self.start, self.numel).clone()


def shards_of(engine: Any, named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[Shard]:
    """The shards of these parameters, those without a part on this rank left out."""
    held = [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    found: list[Shard] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        found += _pieces(engine, name, parameter, held)
    return found


def _pieces(
    engine: Any, name: str, parameter: torch.nn.Parameter, held: list[torch.Tensor]
) -> Iterator[Shard]:
    whole: Any = parameter
    if hasattr(whole, "ds_id"):  # ZeRO-3
        zero = engine.optimizer
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        start = torch.distributed.get_rank(zero.dp_process_group) * whole.partition_numel()
        numel = max(0, min(size, whole.ds_numel - start))  # the last one is padded
        if numel:
            yield Shard(name, zero.fp32_partitioned_groups_flat[group], offset, start, numel)
        return
    if hasattr(whole, "_hp_mapping"):  # ZeRO-1 and 2
        mapping = whole._hp_mapping
        if mapping is None:
            return
        flat, at = _holder(mapping.hp_fragment, held)
        address = mapping.lp_fragment_address
        yield Shard(name, flat, at, address.start, address.numel)
        return
    yield Shard(name, _copy_of(engine, parameter), 0, 0, parameter.numel())


def _holder(fragment: torch.Tensor, held: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The tensor that `fragment` is a view into, and where."""
    for flat in held:
        if flat.untyped_storage().data_ptr() == fragment.untyped_storage().data_ptr():
            return flat, int(fragment.storage_offset()) - int(flat.storage_offset())
    raise RuntimeError("DeepSpeed moves a copy of the weights that the optimizer does not hold")


def _copy_of(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    """What moves in the parameter's place: itself, or the float32 copy of stage 0 in bfloat16."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp16_groups"):
        return parameter
    for group, copies in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for low, high in zip(group, copies, strict=True):
            if low is parameter:
                return high
    raise RuntimeError("DeepSpeed holds no copy of a weight that it trains")


class Intercept:
    """Calls `before` each step of the optimizer inside DeepSpeed, after gradients were averaged, checked
    and clipped. A stage may step its shards one after the other: what is told is which are stepped."""

    def __init__(self, engine: Any) -> None:
        self.before: list[Callable[[set[int]], None]] = []
        optimizer = engine.basic_optimizer
        original = optimizer.step

        def step(*args: Any, **keys: Any) -> Any:
            if self.before:
                stepped = {
                    id(p)
                    for group in optimizer.param_groups
                    for p in group["params"]
                    if p.grad is not None
                }
                for call in self.before:
                    call(stepped)
            return original(*args, **keys)

        optimizer.step = step
