"""GPU transports, as far as a machine without a GPU can tell: hashes, descriptions, order of calls."""

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlft.config import Lora
from rlft.errors import ConfigError, ResourceError, WeightsMismatch
from rlft.weights import lora_adapter, vllm_transfer
from rlft.weights.checksum import checksum, gpu_fingerprint
from rlft.weights.fingerprint import check_manifest
from rlft.weights.lora_adapter import LoraAdapter, adapter_tensors, lora_engine_args
from rlft.weights.transports import Meeting
from rlft.weights.vllm_transfer import (
    CudaIpc,
    Nccl,
    layout_of,
    push,
    rank_offset,
    update_info,
    watched_update,
    world_size,
)

MASK = 2**64 - 1


def splitmix64(x: int) -> int:
    """The finaliser as published, in unbounded integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_checksum(content: bytes) -> int:
    content += b"\0" * (-len(content) % 8)
    words = [int.from_bytes(content[i : i + 8], "little") for i in range(0, len(content), 8)]
    terms = [splitmix64((w + (i + 1) * 0x9E3779B97F4A7C15) & MASK) for i, w in enumerate(words)]
    return sum(terms) & MASK


def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def hash_of(tensor: torch.Tensor) -> str:
    return gpu_fingerprint("w", tensor).hash


class TestChecksum:
    @pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 64, 1001])
    def test_is_the_published_mix_summed_over_positions(self, count: int) -> None:
        tensor = noise(count)
        content = tensor.view(torch.uint8).numpy().tobytes()
        assert int(checksum(tensor)) & MASK == slow_checksum(content)

    @pytest.mark.parametrize("chunk_words", [1, 2, 7, 100, 10**6])
    def test_does_not_depend_on_chunks(self, chunk_words: int) -> None:
        tensor = noise(31, 33)
        assert torch.equal(checksum(tensor, chunk_words=chunk_words), checksum(tensor))

    def test_does_not_depend_on_strides_or_alignment(self) -> None:
        tensor = noise(16, 24)
        assert hash_of(tensor.t().contiguous().t()) == hash_of(tensor)
        buffer = torch.zeros(tensor.numel() + 1, dtype=torch.bfloat16)
        buffer[1:] = tensor.reshape(-1)  # two bytes into a packed buffer
        assert hash_of(buffer[1:].reshape(16, 24)) == hash_of(tensor)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("places", [(0, 1), (0, 4), (3, 7), (5, 999), (998, 999)])
    def test_exchanging_two_elements_shows(
        self, dtype: torch.dtype, places: tuple[int, int]
    ) -> None:
        tensor = noise(1000, dtype=dtype)
        swapped = tensor.clone()
        i, j = places
        swapped[i], swapped[j] = tensor[j], tensor[i]
        assert hash_of(swapped) != hash_of(tensor)

    def test_exchanging_a_number_and_its_negative_shows(self) -> None:
        # Only the top bit of two words differs: a sum weighted by odd numbers would miss it.
        tensor = torch.ones(8, dtype=torch.bfloat16)
        tensor[3] = -1
        swapped = torch.ones(8, dtype=torch.bfloat16)
        swapped[7] = -1
        assert hash_of(swapped) != hash_of(tensor)

    def test_every_single_bit_shows(self) -> None:
        tensor = noise(20)
        seen = {hash_of(tensor)}
        for byte in range(40):
            for bit in range(8):
                changed = tensor.clone()
                changed.view(torch.uint8)[byte] ^= 1 << bit
                seen.add(hash_of(changed))
        assert len(seen) == 1 + 40 * 8

    def test_a_tensor_shifted_by_one_element_shows(self) -> None:
        tensor = noise(256)
        assert hash_of(tensor.roll(1)) != hash_of(tensor)

    def test_shape_and_dtype_are_part_of_the_hash(self) -> None:
        tensor = noise(4, 6)
        hashes = {
            hash_of(tensor),
            hash_of(tensor.reshape(6, 4)),
            hash_of(tensor.reshape(-1)),
            hash_of(tensor.view(torch.float16)),
            hash_of(tensor.view(torch.int16)),
        }
        assert len(hashes) == 5
        # Padding is zeros: without the shape these two would be one.
        assert hash_of(torch.zeros(3)) != hash_of(torch.zeros(4))

    def test_scalar_and_empty_tensors(self) -> None:
        assert gpu_fingerprint("w", torch.tensor(1.0)).shape == ()
        assert hash_of(torch.zeros(0, 3)) != hash_of(torch.zeros(3, 0))

    def test_a_manifest_of_them_names_dropped_and_swapped_tensors(self) -> None:
        a, b = noise(4, 4), noise(4, 4) + 1
        sent = [gpu_fingerprint("a", a), gpu_fingerprint("b", b)]
        check_manifest(sent, [gpu_fingerprint("b", b), gpu_fingerprint("a", a)], receiver="it")
        with pytest.raises(WeightsMismatch, match="b is missing"):
            check_manifest(sent, sent[:1], receiver="it")
        with pytest.raises(WeightsMismatch, match="a differs"):
            check_manifest(sent, [gpu_fingerprint("a", b), gpu_fingerprint("b", a)], receiver="it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("transport", [Nccl, CudaIpc, LoraAdapter])
def test_refused_without_cuda(transport: type) -> None:
    with pytest.raises(ResourceError, match=r"publish\.transport=object_store") as caught:
        transport()
    assert "finds none" in str(caught.value)


@pytest.fixture
def cuda_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets transports be made here; nothing that needs a device may then be called."""
    for module in (vllm_transfer, lora_adapter):
        monkeypatch.setattr(module, "require_cuda", lambda name: None)


class FakeWorker:
    """A vLLM worker: its methods, a transfer engine, and a model that loads."""

    device = "cuda:0"

    def __init__(self, incoming: list[tuple[str, torch.Tensor]]) -> None:
        self.calls: list[str] = []
        self.loaded: dict[str, torch.Tensor] = {}
        self.incoming = incoming
        self.model = SimpleNamespace(load_weights=self.loaded.update)
        self.weight_transfer_engine = self
        self.model_config = "config"
        self.default = self.model
        self.infos: list[dict] = []

    def set_weight_update_target(self, model: object, model_config: object) -> None:
        self.model = model  # type: ignore[assignment]

    def reset_weight_update_target(self) -> None:
        self.model = self.default

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        self.infos.append(init_info)

    def start_weight_update(self) -> None:
        assert self.model is self.default  # vLLM walks over the real model here
        self.calls.append("start")

    def update_weights(self, update_info: dict) -> None:
        self.calls.append("update")
        assert update_info["names"] == [name for name, _ in self.incoming]
        for pair in self.incoming:
            self.model.load_weights(iter([pair]))

    def finish_weight_update(self) -> None:
        assert self.model is self.default
        self.calls.append("finish")


class FakeEngine:
    """What a sampler's vLLM engine offers to transports."""

    def __init__(self, *workers: object) -> None:
        self.workers, self.adapter = workers, None

    def rpc(self, method: object, **kwargs: object) -> list:
        if callable(method):
            return [method(w, **kwargs) for w in self.workers]
        return [getattr(w, str(method))(**kwargs) for w in self.workers]


def tensors() -> list[tuple[str, torch.Tensor]]:
    return [("a", noise(3, 5)), ("b", noise(7)), ("c", noise(2, 2, dtype=torch.float32))]


class TestPush:
    def test_reports_what_the_loader_was_handed(self) -> None:
        workers = FakeWorker(tensors()), FakeWorker(tensors())
        handed = push(FakeEngine(*workers), update_info(layout_of(tensors())))
        assert handed == [gpu_fingerprint(n, t) for n, t in tensors()]
        for worker in workers:
            assert worker.calls == ["start", "update", "finish"]
            assert worker.loaded.keys() == {"a", "b", "c"}

    def test_workers_that_were_handed_different_tensors_are_an_error(self) -> None:
        other = [(n, t + 1) for n, t in tensors()]
        engine = FakeEngine(FakeWorker(tensors()), FakeWorker(other))
        with pytest.raises(WeightsMismatch, match="workers 0 and 1"):
            push(engine, update_info(layout_of(tensors())))

    def test_the_model_is_put_back_when_loading_fails(self) -> None:
        worker = FakeWorker(tensors())
        worker.default.load_weights = lambda pairs: 1 / 0
        with pytest.raises(ZeroDivisionError):
            watched_update(worker, update_info(layout_of(tensors())))
        assert worker.model is worker.default


class TestDescriptions:
    MEETING = Meeting(("host", 1234), engines=3, workers=2, gpu="GPU-0", layout=())

    def test_every_worker_of_every_engine_has_an_nccl_rank_of_its_own(self) -> None:
        offsets = [rank_offset(self.MEETING, index) for index in range(3)]
        ranks = {0} | {offset + worker for offset in offsets for worker in range(2)}
        assert ranks == set(range(world_size(self.MEETING)))

    def test_layout_and_update_info(self) -> None:
        layout = layout_of(tensors())
        assert [s.hash for s in layout] == ["", "", ""]
        assert update_info(layout) == {
            "names": ["a", "b", "c"],
            "dtype_names": ["bfloat16", "bfloat16", "float32"],
            "shapes": [[3, 5], [7], [2, 2]],
        }

    def test_vllm_accepts_the_descriptions(
        self, cuda_pretended: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nccl = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")
        ipc = pytest.importorskip("vllm.distributed.weight_transfer.ipc_engine")
        info = update_info(layout_of(tensors()))
        nccl.NCCLWeightTransferUpdateInfo(**info)
        ipc.IPCWeightTransferUpdateInfo(**info, ipc_handles=[{}, {}, {}])
        monkeypatch.setattr(vllm_transfer, "worker_gpu", lambda worker: "GPU-1")
        workers = FakeWorker([]), FakeWorker([])
        Nccl().meet_engine(FakeEngine(*workers), self.MEETING, 1)
        made = nccl.NCCLWeightTransferInitInfo(**workers[0].infos[0])
        assert (made.master_address, made.master_port) == ("host", 1234)
        assert (made.rank_offset, made.world_size, made.packed) == (3, 7, True)
        one = FakeWorker([])
        meeting = replace(self.MEETING, workers=1, gpu="GPU-1")
        CudaIpc().meet_engine(FakeEngine(one), meeting, 1)
        assert not ipc.IPCWeightTransferInitInfo(**one.infos[0]).packed

    def test_both_ends_of_nccl_agree_on_the_wire(
        self, cuda_pretended: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nccl = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")
        opened = []
        monkeypatch.setattr(
            nccl,
            "open_trainer_endpoint",
            lambda info: opened.append(info) or SimpleNamespace(disabled=False),
        )
        monkeypatch.setattr(vllm_transfer, "worker_gpu", lambda worker: "GPU-1")
        Nccl().meet_learner(self.MEETING)
        worker = FakeWorker([])
        Nccl().meet_engine(FakeEngine(worker, FakeWorker([])), self.MEETING, 0)
        shared = worker.infos[0].keys() - {"rank_offset"}
        assert {k: getattr(opened[0], k) for k in shared} == {k: worker.infos[0][k] for k in shared}

    def test_a_missing_nccl_library_is_not_passed_over(
        self, cuda_pretended: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nccl = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")
        monkeypatch.setattr(
            nccl, "open_trainer_endpoint", lambda info: SimpleNamespace(disabled=True)
        )
        with pytest.raises(ResourceError, match="NCCL library"):
            Nccl().meet_learner(self.MEETING)


class TestPlacement:
    """Each transport refuses the placement that it cannot serve, before it blocks."""

    MEETING = Meeting(("host", 1234), engines=1, workers=1, gpu="GPU-0", layout=())

    @pytest.fixture(autouse=True)
    def _pretend(self, cuda_pretended: None) -> None:
        return

    def at(self, monkeypatch: pytest.MonkeyPatch, gpu: str) -> FakeEngine:
        monkeypatch.setattr(vllm_transfer, "worker_gpu", lambda worker: gpu)
        return FakeEngine(FakeWorker([]))

    def test_nccl_on_the_learners_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ResourceError, match="disaggregated"):
            Nccl().meet_engine(self.at(monkeypatch, "GPU-0"), self.MEETING, 0)

    def test_ipc_on_another_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ResourceError, match="same GPU"):
            CudaIpc().meet_engine(self.at(monkeypatch, "GPU-1"), self.MEETING, 0)

    def test_ipc_with_several_workers(self) -> None:
        with pytest.raises(ConfigError, match="tensor_parallel_size=1"):
            CudaIpc().open(iter(()), ("host", 1), engines=1, workers=2)

    def test_an_engine_with_another_number_of_workers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ConfigError, match="told of 2 workers"):
            Nccl().meet_engine(self.at(monkeypatch, "GPU-1"), replace(self.MEETING, workers=2), 0)

    def test_an_engine_that_is_not_vllm(self) -> None:
        with pytest.raises(ConfigError, match=r"sampler\.engine=vllm"):
            Nccl().meet_engine(object(), self.MEETING, 0)


class TestNccl:
    def test_what_was_taken_answers_for_one_version(self, cuda_pretended: None) -> None:
        transport = Nccl()
        transport._layout = layout_of(tensors())
        transport.take(FakeEngine(FakeWorker(tensors())))
        update = SimpleNamespace(version=3)
        assert transport.deliver(None, update, None) == [  # type: ignore[arg-type]
            gpu_fingerprint(n, t) for n, t in tensors()
        ]
        with pytest.raises(WeightsMismatch, match="nothing was taken"):
            transport.deliver(None, update, None)  # type: ignore[arg-type]


LORA = Lora(rank=4, alpha=8.0)


def adapter(scale: float = 1.0) -> dict[str, torch.Tensor]:
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    return {
        f"{prefix}.lora_A.weight": scale * noise(4, 16, dtype=torch.float32),
        f"{prefix}.lora_B.weight": scale * noise(16, 4, dtype=torch.float32),
    }


class LoraWorker:
    """A vLLM worker that keeps adapters by id, and does not reload an id that it has."""

    def __init__(self) -> None:
        self.held: dict[int, dict[str, torch.Tensor]] = {}
        self.order: list[str] = []

    def add_lora(self, lora_request: object) -> bool:
        from safetensors.torch import load_file

        number = lora_request.lora_int_id  # type: ignore[attr-defined]
        assert number not in self.held
        path = lora_request.lora_path  # type: ignore[attr-defined]
        self.held[number] = load_file(f"{path}/adapter_model.safetensors")
        self.order.append(f"add {number}")
        return True

    def remove_lora(self, lora_id: int) -> bool:
        del self.held[lora_id]
        self.order.append(f"remove {lora_id}")
        return True


class TestLora:
    def publish(self, transport: LoraAdapter, engine: FakeEngine, version: int) -> None:
        stored = []
        update = transport.send(
            iter(adapter(1 + version).items()), version, lambda x: stored.append(x) or "ref"
        )
        assert update.kind == "lora"
        handed = transport.deliver(engine, update, stored[0])
        check_manifest(update.manifest, handed, receiver="it")

    def test_every_version_is_a_new_request_and_the_old_one_goes(
        self, cuda_pretended: None
    ) -> None:
        pytest.importorskip("vllm")
        transport, worker = LoraAdapter(), LoraWorker()
        engine = FakeEngine(worker)
        transport.engine_args(LORA)
        names = []
        for version in range(3):
            self.publish(transport, engine, version)
            [(number, held)] = worker.held.items()
            assert engine.adapter.lora_int_id == number
            names.append(engine.adapter.lora_name)
            for name, tensor in adapter(1 + version).items():
                assert torch.equal(held[name], tensor)
        assert len(set(names)) == 3
        # The next is loaded before the last is removed: a failed load leaves an engine that works.
        assert worker.order == ["add 1", "add 2", "remove 1", "add 3", "remove 2"]

    def test_an_adapter_that_vllm_refuses_is_an_error(
        self, cuda_pretended: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("vllm")
        transport = LoraAdapter()
        transport.engine_args(LORA)
        monkeypatch.setattr(LoraWorker, "add_lora", lambda self, lora_request: False)
        with pytest.raises(WeightsMismatch, match="did not load"):
            self.publish(transport, FakeEngine(LoraWorker()), 0)

    def test_the_folder_is_what_vllm_reads(self, tmp_path) -> None:
        helper = pytest.importorskip("vllm.lora.peft_helper")
        lora_adapter.write_adapter(tmp_path / "adapter", LORA, adapter())
        read = helper.PEFTHelper.from_local_dir(str(tmp_path / "adapter"), 64)
        assert (read.r, read.vllm_lora_scaling_factor) == (4, 2.0)
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["target_modules"] == ["q_proj"]

    @pytest.mark.parametrize("rank, room", [(1, 1), (4, 8), (16, 16), (17, 32), (512, 512)])
    def test_the_engine_is_built_with_room_for_the_rank(self, rank: int, room: int) -> None:
        assert lora_engine_args(Lora(rank=rank))["max_lora_rank"] == room

    def test_refusals(self, cuda_pretended: None) -> None:
        with pytest.raises(ConfigError, match="at most 512"):
            lora_engine_args(Lora(rank=513))
        with pytest.raises(ConfigError, match=r"needs model\.lora"):
            LoraAdapter().engine_args(None)
        with pytest.raises(ConfigError, match="has no adapter"):
            LoraAdapter().send(iter(()), 0, lambda x: x)

    def test_names_are_those_that_peft_saves(self) -> None:
        peft = pytest.importorskip("peft")
        inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model = peft.get_peft_model(inner, peft.LoraConfig(r=2, target_modules=["0", "1"]))
        got = dict(adapter_tensors(model.get_base_model(), contextlib.nullcontext))
        want = peft.get_peft_model_state_dict(model)
        assert got.keys() == want.keys()
        for name, tensor in want.items():
            assert torch.equal(got[name], tensor)
