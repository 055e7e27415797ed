"""Weights straight into vLLM's GPU workers, through vLLM's own weight-transfer API.

Not run: written against vLLM 0.32's API on a machine without a GPU. The checksum, the descriptions
and the call order are tested on CPU; `tests/gpu/test_transports.py` holds what a GPU must show.

`Nccl` streams: the learner broadcasts while every worker receives. `CudaIpc` shares: the learner
keeps a copy of the weights on its GPU, and an engine on the same GPU reads it. Both hand every
tensor to vLLM's loader inside the worker, where it is hashed on the GPU. File names in comments are
those of `vllm/distributed/weight_transfer/` unless a path is given.

Left out: more than one sending rank (vLLM gathers the handles of all; here rank 0 alone sends, so
`cuda_ipc` reaches rank 0's GPU only), chunked IPC, and a path that never touches host memory
(`full_tensors` yields CPU tensors, because a gathered ZeRO-3 parameter is freed once it is yielded).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from rlft.errors import ConfigError, ResourceError, WeightsMismatch
from rlft.types import TensorSpec, WeightUpdate
from rlft.weights.checksum import Ledger, dtype_name
from rlft.weights.transports import Meeting, Transport

_BUFFER_BYTES = 256 * 2**20
"""NCCL sends chunks of this size, two in flight. vLLM's default is 1 GiB (`packed_tensor.py`); the
buffers are allocated beside a model that has usually claimed the rest of the GPU."""

_NUM_BUFFERS = 2


def layout_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[TensorSpec, ...]:
    """A manifest without hashes: what vLLM's receivers must be told before the bytes arrive."""
    return tuple(TensorSpec(n, tuple(t.shape), dtype_name(t), "") for n, t in tensors)


def update_info(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The fields that `NCCLWeightTransferUpdateInfo` (nccl_engine.py) and
    `IPCWeightTransferUpdateInfo` (ipc_engine.py) share."""
    return {
        "names": [s.name for s in specs],
        "dtype_names": [s.dtype for s in specs],
        "shapes": [list(s.shape) for s in specs],
    }


def rank_offset(meeting: Meeting, index: int) -> int:
    """NCCL rank of the first worker of engine `index`; the learner is rank 0.

    `worker_init_process_group` (nccl_common.py) adds the worker's rank inside its own engine only.
    vLLM's trainer ships offset 1 to every handle, which is right for one engine and gives several
    independent ones the same ranks: so each sampler makes its own description.
    """
    return 1 + index * meeting.workers


def world_size(meeting: Meeting) -> int:
    return 1 + meeting.engines * meeting.workers


def require_cuda(transport: str) -> None:
    """Raises ResourceError in a process without a CUDA device."""
    if torch.cuda.is_available():
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    raise ResourceError(
        f"publish.transport={transport} needs a CUDA device in every learner and sampler process, "
        f"and here torch {torch.__version__} finds none (CUDA_VISIBLE_DEVICES is {visible!r}). Give "
        f"them GPUs (learner.gpus=1 sampler.gpus=1 and locks/gpu.txt), or set "
        f"publish.transport=object_store."
    )


def learner_gpu() -> str:
    """UUID of this process's current GPU, as vLLM's IPC handles name it (ipc_engine.py)."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


# -- inside a vLLM worker ------------------------------------------------------------------------


class _Watched:
    """Stands in for the model while a transfer engine receives: hashes, then loads."""

    def __init__(self, model: Any, ledger: Ledger) -> None:
        self._model, self._ledger = model, ledger

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        pairs = list(weights)
        for name, tensor in pairs:
            self._ledger.add(name, tensor)
        return self._model.load_weights(pairs)


def watched_update(worker: Any, update_info: dict[str, Any]) -> list[TensorSpec]:
    """One `update_weights` of a worker (vllm/v1/worker/gpu_worker.py); what its loader was handed.

    `receive_weights` of both engines uses `self.model` for `load_weights` alone, and the target may
    be exchanged (`set_weight_update_target`, base.py). `update_weights` synchronises the device
    before it returns, so the sums can be read after it.
    """
    engine, ledger = worker.weight_transfer_engine, Ledger()
    engine.set_weight_update_target(_Watched(engine.model, ledger), engine.model_config)
    try:
        worker.update_weights(update_info)
    finally:
        engine.reset_weight_update_target()
    return ledger.specs()


def worker_gpu(worker: Any) -> str:
    """UUID of the GPU that a worker's model lives on."""
    return str(torch.cuda.get_device_properties(worker.device).uuid)


def push(engine: Any, info: dict[str, Any]) -> list[TensorSpec]:
    """A whole update of one engine; what the loaders of all its workers were handed alike.

    Start and finish wrap vLLM's layerwise reload (nccl_engine.py, ipc_engine.py), which repacks and
    copies into the tensors that CUDA graphs have captured. Raises WeightsMismatch if workers differ.
    """
    engine.rpc("start_weight_update")
    handed = engine.rpc(watched_update, update_info=info)
    engine.rpc("finish_weight_update")
    for rank, specs in enumerate(handed):
        if specs != handed[0]:
            raise WeightsMismatch(
                f"workers 0 and {rank} of one engine were handed different tensors"
            )
    return handed[0]


def engine_gpus(engine: Any, transport: str, workers: int) -> list[str]:
    """GPU of each worker. Raises ConfigError for an engine that is not vLLM, or another count."""
    if not hasattr(engine, "rpc"):
        raise ConfigError(
            f"publish.transport={transport} drives vLLM's workers, but the engine is "
            f"{type(engine).__name__}; set sampler.engine=vllm or publish.transport=object_store."
        )
    gpus = engine.rpc(worker_gpu)
    if len(gpus) != workers:
        raise ConfigError(
            f"publish.transport={transport} was told of {workers} workers an engine, this engine has "
            f"{len(gpus)}; check sampler.engine_args (tensor_parallel_size, pipeline_parallel_size)."
        )
    return gpus


# -- transports ----------------------------------------------------------------------------------


class Nccl(Transport):
    """vLLM's NCCL broadcast: learner and engines on different GPUs, of one or of several nodes.

    If one side dies in the middle, the other waits inside NCCL: the driver's `publish` deadline ends
    the run.
    """

    meets = True
    concurrent = True

    def __init__(self) -> None:
        require_cuda("nccl")
        self._sender: Any = None
        self._stream: _Stream | None = None
        self._layout: tuple[TensorSpec, ...] = ()
        self._taken: list[TensorSpec] | None = None

    def open(
        self,
        tensors: Iterator[tuple[str, torch.Tensor]],
        address: tuple[str, int],
        engines: int,
        workers: int,
    ) -> Meeting:
        return Meeting(address, engines, workers, learner_gpu(), layout_of(tensors))

    def meet_learner(self, meeting: Meeting) -> None:
        """Opens rank 0 of the group; blocks until every worker has joined."""
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )

        self._stream = _Stream(meeting.layout)
        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=meeting.address[0],
            master_port=meeting.address[1],
            world_size=world_size(meeting),
            packed=True,
            packed_buffer_size_bytes=_BUFFER_BYTES,
            packed_num_buffers=_NUM_BUFFERS,
        )
        stream: Any = self._stream  # a `WeightSource` (base.py) by structure
        self._sender = NCCLTrainerWeightTransferEngine.trainer_init(
            info, client=_CalledByDriver(), source=stream
        )
        if self._sender.model_update_group.disabled:
            # vllm/distributed/device_communicators/pynccl.py goes on in silence without its library.
            raise ResourceError(
                "publish.transport=nccl: vLLM could not load the NCCL library in the learner (or "
                "VLLM_DISABLE_PYNCCL is set). Install locks/gpu.txt, or set "
                "publish.transport=object_store."
            )

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], version: int, put: Any
    ) -> WeightUpdate:
        """Broadcasts; returns once the bytes have left. Every engine must be in `take`."""
        assert self._stream is not None, "meet_learner comes first"
        torch.cuda.synchronize()  # vLLM packs on streams of its own; the optimizer wrote on another
        manifest = self._stream.play(tensors, self._sender.send_weights)
        return WeightUpdate(version, version - 1, "full", manifest)

    def engine_args(self, lora: Any) -> dict[str, Any]:
        return {"weight_transfer_config": {"backend": "nccl"}}

    def meet_engine(self, engine: Any, meeting: Meeting, index: int) -> None:
        """Joins with this engine's workers.

        Raises ResourceError when it shares the learner's GPU, where NCCL cannot connect.
        """
        gpus = engine_gpus(engine, "nccl", meeting.workers)
        if meeting.gpu in gpus:
            raise ResourceError(
                f"publish.transport=nccl: sampler {index} shares {meeting.gpu} with learner rank 0, and "
                f"NCCL cannot connect two processes on one GPU. Set cluster.placement=disaggregated, "
                f"or publish.transport=cuda_ipc."
            )
        self._layout = meeting.layout
        info = {
            "master_address": meeting.address[0],
            "master_port": meeting.address[1],
            "rank_offset": rank_offset(meeting, index),
            "world_size": world_size(meeting),
            "packed": True,
            "packed_buffer_size_bytes": _BUFFER_BYTES,
            "packed_num_buffers": _NUM_BUFFERS,
        }
        engine.rpc("init_weight_transfer_engine", init_info=info)

    def take(self, engine: Any) -> None:
        self._taken = push(engine, update_info(self._layout))

    def deliver(self, engine: Any, update: WeightUpdate, payload: Any) -> list[TensorSpec]:
        """What `take` brought; each `take` answers for one version."""
        if self._taken is None:
            raise WeightsMismatch(f"version {update.version} was announced, but nothing was taken")
        handed, self._taken = self._taken, None
        return handed


class _CalledByDriver:
    """vLLM's control client (`VLLMWeightSyncClient`, base.py) of a trainer that does not drive it.

    The driver calls both halves and waits for both, with a deadline; vLLM's own client would wait
    inside the learner, without one.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class _Stream:
    """vLLM's `WeightSource` (base.py) over the iterator of one `send`."""

    def __init__(self, layout: tuple[TensorSpec, ...]) -> None:
        self._layout = layout
        self._tensors: Iterator[tuple[str, torch.Tensor]] = iter(())
        self._ledger = Ledger()

    def play(
        self, tensors: Iterator[tuple[str, torch.Tensor]], send_weights: Any
    ) -> tuple[TensorSpec, ...]:
        """Runs `send_weights`, which iterates over `self`; returns the manifest of what it saw."""
        self._tensors, self._ledger = tensors, Ledger()
        send_weights()
        torch.cuda.synchronize()
        return tuple(self._ledger.specs())

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(s.name, getattr(torch, s.dtype), s.shape) for s in self._layout]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        # `_checked_iter` (nccl_engine.py) compares each pair with `metadata` and names the first
        # that differs, so no check is made here.
        for name, tensor in self._tensors:
            there = tensor.to("cuda").contiguous()
            self._ledger.add(name, there)
            yield name, there


class CudaIpc(Transport):
    """CUDA IPC: engines on the GPU of the one learner rank read its memory; nothing crosses a wire.

    Costs one more copy of the weights on that GPU from `send` until `release`.
    """

    meets = True

    def __init__(self) -> None:
        require_cuda("cuda_ipc")
        self._engines, self._index = 0, 0
        self._held: list[torch.Tensor] = []

    def open(
        self,
        tensors: Iterator[tuple[str, torch.Tensor]],
        address: tuple[str, int],
        engines: int,
        workers: int,
    ) -> Meeting:
        if workers != 1:
            raise ConfigError(
                f"publish.transport=cuda_ipc reaches one GPU, but an engine has {workers} workers; "
                f"set tensor_parallel_size=1, or publish.transport=nccl."
            )
        return Meeting(address, engines, workers, learner_gpu(), layout_of(tensors))

    def meet_learner(self, meeting: Meeting) -> None:
        self._engines = meeting.engines

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], version: int, put: Any
    ) -> WeightUpdate:
        """Copies the weights to the GPU and exports them; `source` has the handles of each engine."""
        from torch.multiprocessing.reductions import reduce_tensor

        ledger = Ledger()
        for name, tensor in tensors:
            there = tensor.to("cuda").contiguous()
            ledger.add(name, there)
            self._held.append(there)
        torch.cuda.synchronize()  # a reader of shared memory does not know our streams
        manifest, gpu = tuple(ledger.specs()), learner_gpu()
        # An export is for one reader: torch counts one release for each (`PackedBufferImporter`,
        # packed_tensor.py, tells what happens otherwise).
        source = [
            update_info(manifest)
            | {"ipc_handles": [{gpu: reduce_tensor(tensor)[1]} for tensor in self._held]}
            for _ in range(self._engines)
        ]
        return WeightUpdate(version, version - 1, "full", manifest, source=source)

    def release(self) -> None:
        # Not earlier: vLLM's layerwise reload may hold views until `finish_weight_update`.
        self._held.clear()
        torch.cuda.ipc_collect()

    def engine_args(self, lora: Any) -> dict[str, Any]:
        return {"weight_transfer_config": {"backend": "ipc"}}

    def meet_engine(self, engine: Any, meeting: Meeting, index: int) -> None:
        """Raises ResourceError when this engine is not on the learner's GPU."""
        [gpu] = engine_gpus(engine, "cuda_ipc", 1)
        if gpu != meeting.gpu:
            raise ResourceError(
                f"publish.transport=cuda_ipc: sampler {index} is on {gpu}, learner rank 0 on "
                f"{meeting.gpu}, and only a process on the same GPU can read its memory. Set "
                f"cluster.placement=colocated with learner.num=1 sampler.num=1, or "
                f"publish.transport=nccl."
            )
        self._index = index
        engine.rpc("init_weight_transfer_engine", init_info={"packed": False})

    def deliver(self, engine: Any, update: WeightUpdate, payload: Any) -> list[TensorSpec]:
        return push(engine, payload[self._index])
