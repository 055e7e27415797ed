"""Ways for weights to travel: the interface, and the short names.

`object_store` works everywhere. `nccl` and `cuda_ipc` are vLLM's own weight-transfer engines, and
`lora` sends adapters alone; these three need GPUs and have not been run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from rlft.types import TensorSpec, WeightUpdate

if TYPE_CHECKING:
    import torch

    from rlft.config import Lora

__all__ = ["cuda_ipc", "lora", "nccl", "object_store"]

# Strings, so that naming one transport does not import the others' packages.
object_store = "rlft.weights.object_store:ObjectStore"
nccl = "rlft.weights.vllm_transfer:Nccl"
cuda_ipc = "rlft.weights.vllm_transfer:CudaIpc"
lora = "rlft.weights.lora_adapter:LoraAdapter"


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the two halves must know of each other before they meet.

    address: (host, free port) of learner rank 0; engines: how many samplers; workers: GPU processes
    of each (tensor x pipeline parallel); gpu: UUID of rank 0's GPU; layout: what every update holds,
    in order, hashes left empty.
    """

    address: tuple[str, int]
    engines: int
    workers: int
    gpu: str
    layout: tuple[TensorSpec, ...]


class Transport(Protocol):
    """A way for weights to travel. The learner half runs on rank 0, the sampler half in each sampler.

    A transport that `meets` is started by `open`, then `meet_learner` and every `meet_engine` at
    once. Each version is a `send`, then a `deliver` in every sampler, then (if it meets) a `release`.
    If it is `concurrent`, every sampler's `take` runs at the same time as the `send`: neither returns
    without the other. The defaults are those of a transport whose tensors the sampler can pull.
    """

    meets: ClassVar[bool] = False
    concurrent: ClassVar[bool] = False
    adapter_only: ClassVar[bool] = False
    """`send` is given the adapter's tensors, and not the whole model with the adapter merged."""

    # -- learner half ----------------------------------------------------------------------------

    def open(
        self,
        tensors: Iterator[tuple[str, torch.Tensor]],
        address: tuple[str, int],
        engines: int,
        workers: int,
    ) -> Meeting:
        """Says where and how to meet; exhausts one pass over `tensors` to learn the layout."""
        for _ in tensors:
            pass
        return Meeting(address, engines, workers, "", ())

    def meet_learner(self, meeting: Meeting) -> None:
        """Joins the engines; may block until all of them are in `meet_engine`."""
        return None

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], version: int, put: Any
    ) -> WeightUpdate:
        """Exhausts `tensors`, makes them available to every engine, and describes them.

        put: stores an object for every process and returns its reference. The manifest says what
        every loader must be handed, with hashes of the kind that `deliver` returns.
        """
        ...

    def release(self) -> None:
        """Frees what `send` kept alive; every engine has its copy by now."""
        return None

    # -- sampler half ----------------------------------------------------------------------------

    def engine_args(self, lora: Lora | None) -> dict[str, Any]:
        """What the engine must be built with."""
        return {}

    def meet_engine(self, engine: Any, meeting: Meeting, index: int) -> None:
        """Joins the learner; `index` is this sampler's place among `meeting.engines`."""
        return None

    def take(self, engine: Any) -> None:
        """Brings what `send` is streaming into `engine`; blocks until all of it is there."""
        return None

    def deliver(self, engine: Any, update: WeightUpdate, payload: Any) -> list[TensorSpec]:
        """Brings `update` into `engine`; returns what the engine's loader was handed, hashed.

        payload: `update.source`, fetched if it was a reference. The caller compares the answer with
        `update.manifest`; a transport never vouches for itself.
        """
        from rlft.weights.fingerprint import fingerprint

        handed: list[TensorSpec] = []

        def watched() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in self.receive(update, payload):
                handed.append(fingerprint(name, tensor))
                yield name, tensor

        engine.load(watched())
        return handed

    def receive(self, update: WeightUpdate, payload: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields what a pulled payload holds, for the default `deliver`."""
        raise TypeError(f"{type(self).__name__} has neither `deliver` nor `receive`")
