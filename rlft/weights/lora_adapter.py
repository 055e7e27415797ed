"""LoRA adapters alone: a few megabytes instead of the whole model.

Not run: written against vLLM 0.32's API on a machine without a GPU. On CPU adapters are merged before
publishing: vLLM's CPU build decoded 30 times slower with `enable_lora`.

The adapter goes through Ray's object store and into a peft folder on the sampler's disk, because a
folder is what vLLM loads (`LoRARequest.lora_path`, vllm/lora/request.py). Each delivery is a new
request id: vLLM keeps an adapter whose id it knows (`add_adapter`, vllm/lora/worker_manager.py).
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlft.errors import ConfigError, WeightsMismatch
from rlft.types import TensorSpec, WeightUpdate
from rlft.weights.fingerprint import fingerprint
from rlft.weights.object_store import ObjectStore
from rlft.weights.transports import Transport
from rlft.weights.vllm_transfer import require_cuda

if TYPE_CHECKING:
    from rlft.config import Lora

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as `max_lora_rank` (`MaxLoRARanks`, vllm/config/lora.py)."""


def adapter_tensors(causal: Any, gathered: Callable[[list], Any]) -> Iterator[tuple[str, Any]]:
    """Yields (peft name, tensor on the CPU) of the adapter in `causal`: A `[r, in]`, B `[out, r]`.

    gathered: a context in which the given parameters are whole. A collective under ZeRO-3.
    """
    for name, module in causal.named_modules():
        if "default" not in getattr(module, "lora_A", {}):
            continue
        for letter in ("lora_A", "lora_B"):
            weight = getattr(module, letter)["default"].weight
            with gathered([weight]):
                # peft's names; `parse_fine_tuned_lora_name` (vllm/lora/utils.py) strips the prefix.
                full = f"base_model.model.{name}.{letter}.weight"
                yield full, weight.detach().to("cpu", copy=True)


def allowed_rank(rank: int) -> int | None:
    """The smallest rank that vLLM can be built for and that `rank` fits into; None: there is none."""
    return next((r for r in _RANKS if r >= rank), None)


def lora_engine_args(lora: Lora) -> dict[str, Any]:
    """One adapter in use, and room for the next beside it. Raises ConfigError for too high a rank."""
    rank = allowed_rank(lora.rank)
    if rank is None:
        raise ConfigError(
            f"model.lora.rank is {lora.rank}, vLLM takes at most {_RANKS[-1]}; lower it, or set "
            f"publish.transport=object_store (adapters merged)."
        )
    return {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 2}


def peft_config(lora: Lora, names: Mapping[str, Any]) -> dict[str, Any]:
    """`adapter_config.json`, of which vLLM reads rank, alpha and targets (vllm/lora/peft_helper.py)."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted({name.split(".")[-3] for name in names}),
        "bias": "none",
    }


def write_adapter(folder: Path, lora: Lora, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a peft adapter folder that vLLM and peft both load."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(lora, tensors), indent=2))
    whole = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(whole, str(folder / "adapter_model.safetensors"))


class LoraAdapter(Transport):
    """Adapters only, loaded beside the base weights that the engine started from."""

    adapter_only = True

    def __init__(self) -> None:
        require_cuda("lora")
        self._store = ObjectStore()
        self._lora: Lora | None = None
        self._ids = itertools.count(1)
        self._root: tempfile.TemporaryDirectory[str] | None = None

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], version: int, put: Any
    ) -> WeightUpdate:
        """Raises ConfigError when the model has no adapter."""
        update = replace(self._store.send(tensors, version, put), kind="lora")
        if not update.manifest:
            raise ConfigError(
                "publish.transport=lora, but the model has no adapter; set model.lora, or "
                "publish.transport=object_store."
            )
        return update

    def engine_args(self, lora: Lora | None) -> dict[str, Any]:
        """Raises ConfigError without `model.lora`."""
        if lora is None:
            raise ConfigError(
                "publish.transport=lora needs model.lora; set it, or publish.transport=object_store."
            )
        self._lora = lora
        return lora_engine_args(lora)

    def deliver(self, engine: Any, update: WeightUpdate, payload: Any) -> list[TensorSpec]:
        """Writes the adapter's folder, loads it under a new id, then removes the one before.

        The hashes are of the file, read back: it is what the loader reads. Raises ConfigError for an
        engine that is not vLLM, WeightsMismatch if vLLM did not load it.
        """
        from safetensors.torch import load_file

        if not hasattr(engine, "rpc"):
            raise ConfigError(
                f"publish.transport=lora needs sampler.engine=vllm, got {type(engine).__name__}"
            )
        assert self._lora is not None, "engine_args comes first"
        root = tempfile.TemporaryDirectory(prefix="rlft-adapter-")
        folder = Path(root.name) / f"version_{update.version}"
        write_adapter(folder, self._lora, dict(self._store.receive(update, payload)))
        handed = [
            fingerprint(name, tensor)
            for name, tensor in load_file(str(folder / "adapter_model.safetensors")).items()
        ]
        self._exchange(engine, folder)
        # vLLM may read a folder again after an eviction, so it stays until the next takes its place.
        previous, self._root = self._root, root
        if previous is not None:
            previous.cleanup()
        return handed

    def _exchange(self, engine: Any, folder: Path) -> None:
        request = lora_request(next(self._ids), folder)
        if not all(engine.rpc("add_lora", lora_request=request)):
            raise WeightsMismatch(f"vLLM did not load the adapter of {folder.name}")
        previous, engine.adapter = engine.adapter, request
        if previous is not None:
            engine.rpc("remove_lora", lora_id=previous.lora_int_id)


def lora_request(number: int, folder: Path) -> Any:
    """vLLM's request for an adapter folder. Requests are equal by name (vllm/lora/request.py), so the
    name holds the number; numbers start at 1."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"rlft-{number}", number, str(folder))
