"""How much memory a run needs on each device: an estimate, in bytes, of what lives there at once.

What DeepSpeed and the model hold was measured on a CPU, and a test repeats that
(`tests/contract/test_memory_estimate.py`). What a GPU's kernels and allocator need besides was not:
it is the allowance `GPU_OVERHEAD`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlft.check.model_shape import ModelShape
from rlft.config import Config
from rlft.retention.ewc import L2
from rlft.retention.kickstarting import Kickstarting
from rlft.retention.term import retention_of

GIB = float(2**30)
GPU_OVERHEAD = 1.5 * GIB
"""A CUDA context, kernels' workspaces and fragmentation, per process on a GPU. Not measured."""
PROCESS = 0.8 * GIB
"""Of a process that has imported torch, Ray and DeepSpeed or vLLM, on the host."""
SLEEPING = 1.0 * GIB
"""What a vLLM engine keeps on its GPU while it sleeps."""
VLLM_SHARE = 0.92
"""vLLM's own `gpu_memory_utilization`."""
VLLM_CPU_CACHE = 1.0 * GIB
"""`VLLM_CPU_KVCACHE_SPACE` as our engine sets it."""
_CHUNK = 512
"""Positions at a time that pass through the output head (`rlft/policy/head.py`)."""
_BUCKET = 500_000_000
_LIVE = 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and `stage3_max_live_parameters`, in elements."""

Parts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Need:
    """What one process holds, in bytes by name. resident: between two steps; passing: while learning."""

    resident: Parts
    passing: Parts

    @property
    def idle(self) -> float:
        return sum(self.resident.values())

    @property
    def peak(self) -> float:
        return self.idle + sum(self.passing.values())


def learner_need(cfg: Config, shape: ModelShape, *, reference: bool) -> Need:
    """Of one learner rank. reference: a frozen copy of the model is kept for a KL penalty."""
    stage, ranks, size = cfg.learner.zero_stage, cfg.learner.num, _bytes(cfg)
    if shape.by_noise:  # a float32 master beside the model; no gradient, no optimizer, nothing kept
        resident = {"weights": float(size * shape.params), "master": 4.0 * shape.trained}
        return Need(resident, {"head": 4.0 * shape.vocabulary * _CHUNK})
    split = {n: ranks if stage >= n else 1 for n in (1, 2, 3)}
    # Master weights in float32 unless the weights are that already and nothing is partitioned.
    state = 8 if (stage == 0 and size == 4) else 12
    resident = {
        "weights": size * shape.params / split[3],
        "optimizer": state * shape.trained / split[1],
    }
    if reference and cfg.model.lora is None:
        resident["reference"] = float(size * shape.params)
    if kept := _retention(cfg, shape, size, split[1]):
        resident["retention"] = kept
    if shape.critic:  # its own engine; its activations come when the policy's are gone
        resident["critic"] = resident["weights"] + resident["optimizer"]
    zero = cfg.learner.deepspeed.get("zero_optimization", {})
    passing = {
        "gradients": (2 if shape.critic else 1) * size * shape.trained / split[2],
        "activations": activations(cfg, shape),
        # Logits of a chunk, thrice, and the head's gradient, which is summed in float32.
        "head": 4.0 * shape.vocabulary * (3 * _CHUNK + shape.hidden),
    }
    if stage:
        bucket = float(zero.get("reduce_bucket_size", _BUCKET))
        # Memory of the host is taken only where it is written to.
        bucket = bucket if cfg.learner.gpus else min(bucket, shape.trained)
        passing["buffers"] = (2 if shape.critic else 1) * size * bucket
    if stage == 3:
        live = float(zero.get("stage3_max_live_parameters", _LIVE))
        passing["gathered"] = size * min(live, shape.params)
    return Need(resident, passing)


def _retention(cfg: Config, shape: ModelShape, size: int, shards: float) -> float:
    """What retention terms hold on each rank: a whole teacher each, or float32 anchors (and a Fisher) of
    what is trained, in the optimizer's shards."""
    held = 0.0
    for one in retention_of(cfg):
        if one.term().module == "weights":
            held += (4 if isinstance(one, L2) else 8) * shape.trained / shards
        elif isinstance(one, Kickstarting) or getattr(one, "target", "text") == "teacher":
            held += size * shape.params
    return held


def activations(cfg: Config, shape: ModelShape) -> float:
    """What a micro-batch keeps for its backward pass, with a fused attention kernel.

    Per token and layer `4 inner + 8 hidden + 2 kv` numbers in float32, two `hidden` more in bfloat16,
    whose norms compute in float32. With checkpointing `hidden`, and one layer in full. Counted on
    Llama and Qwen2; a mixture of experts is taken for a dense model.
    """
    size = _bytes(cfg)
    tokens = max(cfg.learner.token_budget, cfg.model.max_length)
    layer = size * (4 * shape.inner + (8 if size == 4 else 10) * shape.hidden + 2 * shape.kv_width)
    outside = (2 if size == 4 else 3) * size * shape.hidden  # the embedding and the last norm
    if cfg.model.gradient_checkpointing:
        return float(tokens * (shape.layers * size * shape.hidden + layer + outside))
    # One layer more, for the gradients that pass through.
    return float(tokens * ((shape.layers + 1) * layer + outside))


def sampler_weights(cfg: Config, shape: ModelShape) -> float:
    """Bytes of the engine's weights on each of its GPUs."""
    return _bytes(cfg) * shape.params / max(1.0, cfg.sampler.gpus)


def kv_bytes(cfg: Config, shape: ModelShape) -> float:
    """Bytes of one token in the engine's cache, on each of its GPUs."""
    return 2.0 * shape.layers * shape.kv_width * _bytes(cfg) / max(1.0, cfg.sampler.gpus)


def host_need(cfg: Config, shape: ModelShape, *, reference: bool) -> dict[str, float]:
    """Bytes by process of a run without GPUs on one machine."""
    sampling, learning = cfg.sampler.num, cfg.learner.num
    learner = learner_need(cfg, shape, reference=reference)
    cache = VLLM_CPU_CACHE
    if cfg.sampler.engine != "vllm":
        cache = kv_bytes(cfg, shape) * cfg.sampler.max_batch * cfg.model.max_length
    need = {
        "driver": PROCESS,
        f"{learning} learner": learning * (learner.peak + PROCESS),
        "object store": cfg.cluster.object_store_gb * GIB,
    }
    if sampling:
        need[f"{sampling} sampler"] = sampling * (sampler_weights(cfg, shape) + cache + PROCESS)
    if len(shape.served) < len(cfg.rewards.fns):
        need[f"{cfg.rewards.workers} reward worker"] = cfg.rewards.workers * PROCESS
    return need | served_on_host(shape)


def served_on_host(shape: ModelShape) -> dict[str, float]:
    """Bytes by process of the rewards with a model that have no GPU."""
    return {s.name: PROCESS + sum(s.parts.values()) for s in shape.served if not s.gpus}


def vllm_share(cfg: Config) -> float:
    """The share of its GPU that the engine claims when it starts."""
    return float(cfg.sampler.engine_args.get("gpu_memory_utilization", VLLM_SHARE))


def sequences(cfg: Config, shape: ModelShape, free: float) -> int:
    """How many sequences of `model.max_length` tokens the engine's cache has room for."""
    return max(0, math.floor(free / (kv_bytes(cfg, shape) * cfg.model.max_length)))


def _bytes(cfg: Config) -> int:
    return 4 if cfg.model.dtype == "float32" else 2
