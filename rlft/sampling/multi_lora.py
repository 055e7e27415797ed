"""Many members of a population in one batch of vLLM: the low-rank noise of each as a LoRA adapter.

vLLM adds `x A^T B^T` of a request's adapter to what a linear map gives; a member's noise is such a product
(low_rank.py). Adapters are folders, because that is what vLLM loads; as many as the engine has slots lie
in it at a time. On a CPU vLLM's adapters are slow (SmolLM2-135M: 11 tokens/s where it does 346 without),
so there it has to be asked for with `sampler.engine_args`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlft.errors import ConfigError
from rlft.learning.noise import Drawing, Noise, factors
from rlft.sampling.low_rank import linear_shapes
from rlft.weights.lora_adapter import allowed_rank, lora_request, write_adapter


def member_args(rank: int, together: int) -> dict[str, Any]:
    """What vLLM has to be built with for `together` members of `rank` at a time. Raises ConfigError."""
    allowed = allowed_rank(rank)
    if allowed is None:
        raise ConfigError(
            f"algo.rank is {rank}, which is more than vLLM's adapters have; lower it, use rank 0, or "
            f"sampler.engine=transformers"
        )
    slots = {"max_loras": together, "max_cpu_loras": together}
    return {"enable_lora": True, "max_lora_rank": allowed, **slots}


def adapter_of(
    member: Noise, drawing: Drawing, shapes: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """peft's names and tensors of a member's noise: A `[r, in]`, B `[out, r]`, added as they are; drawn on
    the type of device that the engine has, as the learner draws them."""
    found = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, shape in shapes.items():
        drawn = factors(member.seed, name, shape, drawing.rank, device=device)
        left, right = (side.cpu() for side in drawn)
        plain = f"base_model.model.{name.removesuffix('.weight')}"
        found[f"{plain}.lora_A.weight"] = right.T.contiguous()
        found[f"{plain}.lora_B.weight"] = left * (member.scale * drawing.rank**-0.5)
    return found


@contextmanager
def adapters(
    engine: Any, model: Path, members: Sequence[Noise], drawing: Drawing, numbers: Iterator[int]
) -> Iterator[list[Any]]:
    """vLLM's request of each member's adapter, loaded while inside. numbers: never used before, since
    vLLM keeps an adapter whose number it knows."""
    from rlft.config import Lora

    shapes = linear_shapes(model)
    same = Lora(rank=drawing.rank, alpha=drawing.rank)  # so that vLLM scales by 1
    with tempfile.TemporaryDirectory(prefix="rlft-members-") as root:
        loaded = []
        try:
            for member in members:
                number = next(numbers)
                folder = Path(root) / str(number)
                write_adapter(folder, same, adapter_of(member, drawing, shapes))
                request = lora_request(number, folder)
                if not all(engine.rpc("add_lora", lora_request=request)):
                    raise ConfigError(
                        f"vLLM did not load a member's adapter: it needs sampler.engine_args with "
                        f"{member_args(drawing.rank, len(members))}"
                    )
                loaded.append(request)
            yield loaded
        finally:
            for request in loaded:
                engine.rpc("remove_lora", lora_id=request.lora_int_id)
