"""What rlft does not have and people look for under these names: refused with a sentence, not guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SEQUENCE = (
    "sequence parallelism (Ulysses, ring attention) is not built; a row must fit on one GPU: "
    "lower model.max_length, or set model.gradient_checkpointing=true"
)
_TENSOR = (
    "tensor-parallel learners are not built; learner.zero_stage=3 shards weights, gradients "
    "and optimizer over ranks (an engine may be tensor-parallel: "
    "sampler.engine_args.tensor_parallel_size with as many sampler.gpus)"
)
_PIPELINE = "pipeline parallelism is not built; learner.zero_stage=3 shards the model over ranks"
_MEGATRON = "Megatron is not built; learners are DeepSpeed's"
_SHARDED = (
    "sharded-engine checkpoints are not built; a checkpoint holds a whole Hugging Face model "
    "and each rank's optimizer state"
)
_EXPERT = "expert parallelism is not built; learner.zero_stage=3 shards the model over ranks"

_NOT_BUILT: Mapping[str, str] = {
    "sequence_parallel": _SEQUENCE,
    "sequence_parallel_size": _SEQUENCE,
    "ulysses": _SEQUENCE,
    "ulysses_size": _SEQUENCE,
    "context_parallel": _SEQUENCE,
    "context_parallel_size": _SEQUENCE,
    "ring_attention": _SEQUENCE,
    "tensor_parallel": _TENSOR,
    "tensor_parallel_size": _TENSOR,
    "tp_size": _TENSOR,
    "autotp_size": _TENSOR,
    "pipeline": _PIPELINE,
    "pipeline_parallel": _PIPELINE,
    "pipeline_parallel_size": _PIPELINE,
    "expert_parallel": _EXPERT,
    "expert_parallel_size": _EXPERT,
    "megatron": _MEGATRON,
    "sharded": _SHARDED,
    "sharded_checkpoint": _SHARDED,
    "load_universal": _SHARDED,
}


def not_built(key: str) -> str | None:
    """The sentence for a key, or None if rlft never heard of it."""
    return _NOT_BUILT.get(key.lower().replace("-", "_"))


def refused(tree: Mapping[str, Any], where: str) -> Iterator[str]:
    """A sentence for each key at any depth of a passed-through tree that asks for such a thing."""
    for key, value in tree.items():
        reason = not_built(str(key))
        if reason is not None and value not in (0, 1, False, None):
            yield f"{where}.{key}: {reason}"
        elif isinstance(value, Mapping):
            yield from refused(value, f"{where}.{key}")
