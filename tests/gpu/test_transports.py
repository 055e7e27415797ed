"""GPU transports as they will be used: one learner process, one vLLM engine, real GPUs.

Run with `pytest -m gpu tests/gpu/test_transports.py` on a machine with one GPU; the NCCL test needs
two. Each test publishes two versions of a tiny model and asks for both proofs: the loader was handed
what was sent, and the engine's log-probs are those of the published weights.
"""

import contextlib
import multiprocessing
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlft.config import Lora
from rlft.types import WeightUpdate
from rlft.weights.checksum import checksum
from rlft.weights.fingerprint import check_manifest
from rlft.weights.transports import Meeting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"
    ),
]

IDS = [1, 5, 9, 33, 77, 100, 3, 8, 250, 17, 404, 91]
TOLERANCE = 0.1
"""Mean nats: bfloat16 kernels of two libraries. Other weights are off by several times that."""
PATIENCE_S = 240


def model_of(version: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(version)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,  # so that two versions give clearly different log-probs
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def tensors_of(version: int) -> Iterator[tuple[str, torch.Tensor]]:
    return iter(model_of(version).state_dict().items())


@torch.no_grad()
def expected_logp(model: Any) -> np.ndarray:
    logits = model.cuda()(torch.tensor([IDS], device="cuda")).logits[0, :-1].float()
    chosen = torch.tensor(IDS[1:], device="cuda")[:, None]
    return torch.log_softmax(logits, -1).gather(1, chosen).squeeze(1).cpu().numpy()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def learner(kind: str, device: int, corrupt: bool, pipe: Any) -> None:
    """The learner process: meets, then sends a version for each request until it is told to stop."""
    try:
        from rlft import registry

        torch.cuda.set_device(device)
        transport = registry.resolve("transport", kind)()
        meeting = transport.open(tensors_of(1), ("127.0.0.1", free_port()), engines=1, workers=1)
        pipe.send(meeting)
        transport.meet_learner(meeting)
        while (version := pipe.recv()) is not None:
            update = transport.send(tensors_of(version), version, lambda stored: stored)
            if corrupt:  # after it was hashed, before it is read
                transport._held[3].view(torch.uint8).view(-1)[0] ^= 1
                torch.cuda.synchronize()
            pipe.send(update)
            assert pipe.recv() == "delivered"
            transport.release()
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


@contextlib.contextmanager
def learner_process(kind: str, device: int, corrupt: bool = False) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=learner, args=(kind, device, corrupt, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.terminate()
        process.join(30)


def answer(pipe: Any, kind: type) -> Any:
    assert pipe.poll(PATIENCE_S), f"the learner sent nothing in {PATIENCE_S} s"
    got = pipe.recv()
    assert isinstance(got, kind), got
    return got


def engine_for(transport: Any, folder: Path, lora: Lora | None = None) -> Any:
    from rlft.sampling.vllm import VllmEngine

    model_of(0).save_pretrained(folder)
    return VllmEngine(
        folder,
        dtype="bfloat16",
        max_length=128,
        max_batch=4,
        engine_args={"gpu_memory_utilization": 0.2, **transport.engine_args(lora)},
    )


def publish(transport: Any, engine: Any, pipe: Any, version: int) -> None:
    """What the driver does, with both halves at once where the transport asks for it."""
    pipe.send(version)
    if transport.concurrent:
        transport.take(engine)
    update = answer(pipe, WeightUpdate)
    handed = transport.deliver(engine, update, update.source)
    pipe.send("delivered")
    check_manifest(update.manifest, handed, receiver="the engine")
    assert update.version == version and len(handed) == len(list(tensors_of(version)))


def gap(engine: Any, model: Any) -> float:
    return float(np.abs(engine.score(IDS) - expected_logp(model)).mean())


@pytest.mark.parametrize(
    "kind, learner_gpu",
    [
        ("cuda_ipc", 0),
        pytest.param(
            "nccl",
            1,
            marks=pytest.mark.skipif(
                torch.cuda.device_count() < 2,
                reason=f"needs 2 CUDA devices, torch finds {torch.cuda.device_count()}: NCCL "
                f"cannot connect two processes on one",
            ),
        ),
    ],
)
def test_two_versions_arrive_and_are_used(kind: str, learner_gpu: int, tmp_path: Path) -> None:
    from rlft import registry

    transport = registry.resolve("transport", kind)()
    engine = engine_for(transport, tmp_path / "model")
    with learner_process(kind, learner_gpu) as pipe:
        transport.meet_engine(engine, answer(pipe, Meeting), 0)
        before = gap(engine, model_of(1))
        for version in (1, 2):
            publish(transport, engine, pipe, version)
            assert gap(engine, model_of(version)) < TOLERANCE < before
        pipe.send(None)


def test_a_bit_changed_on_the_way_is_named(tmp_path: Path) -> None:
    from rlft import registry
    from rlft.errors import WeightsMismatch

    transport = registry.resolve("transport", "cuda_ipc")()
    engine = engine_for(transport, tmp_path / "model")
    broken = list(tensors_of(1))[3][0]
    with learner_process("cuda_ipc", 0, corrupt=True) as pipe:
        transport.meet_engine(engine, answer(pipe, Meeting), 0)
        with pytest.raises(WeightsMismatch, match=broken):
            publish(transport, engine, pipe, 1)


def test_adapters_arrive_and_are_used(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from rlft.weights.lora_adapter import LoraAdapter, adapter_tensors

    lora = Lora(rank=8, alpha=16.0)
    transport = LoraAdapter()
    engine = engine_for(transport, tmp_path / "model", lora)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model_of(0), LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    assert gap(engine, model) < TOLERANCE  # B starts at 0
    for version in (1, 2):
        torch.manual_seed(version)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.2
        before = gap(engine, model)
        tensors = adapter_tensors(model.get_base_model(), contextlib.nullcontext)
        update = transport.send(tensors, version, lambda stored: stored)
        handed = transport.deliver(engine, update, update.source)
        check_manifest(update.manifest, handed, receiver="the engine")
        assert gap(engine, model) < TOLERANCE < before
        assert engine.rpc("list_loras") == [{version}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.uint8])
def test_checksum_is_the_same_on_both_devices(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 255, (1003, 77), generator=generator).to(dtype)
    assert int(checksum(tensor.cuda())) == int(checksum(tensor))
    assert int(checksum(tensor.cuda().t(), chunk_words=1000)) == int(checksum(tensor.t()))


def test_checksum_of_a_large_tensor() -> None:
    tensor = torch.randn(2**28, device="cuda", dtype=torch.bfloat16)  # four chunks
    assert int(checksum(tensor)) == int(checksum(tensor.cpu()))
