"""Ways for tensors to travel. A transport has a learner half and a sampler half.

`object_store` works everywhere. `nccl` and `cuda_ipc` are vLLM's own weight-transfer engines
(`vllm_transfer.py`) and need GPUs; `lora` sends adapters alone.
"""

from rlft.weights.object_store import ObjectStore as object_store

__all__ = ["object_store"]
