"""The vLLM engine, in the sampler actor's own process.

Token ids in, token ids and log-probs out; the log-probs are those of the distribution sampled from
(after temperature). Prefix caching is off, because cached prefixes outlive the weights they were
computed with. The tokenizer is not loaded: text is the sampler's business.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.errors import ResourceError
from rlft.learning.noise import Drawing, Noise
from rlft.sampling.desk import Desk
from rlft.sampling.multi_lora import adapters, member_args
from rlft.types import Completion, Request, Sampling


class VllmEngine:
    """vLLM: fast batched decoding on CPU and GPU. `max_batch`: sequences decoded together; `row_noise`:
    whether it was built with adapters, and so can decode for many members at once."""

    row_noise = False
    member_args = staticmethod(member_args)

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str,
        max_length: int,
        max_batch: int,
        temperature: float = 1.0,
        seed: int = 0,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        # Read by vLLM at import: engine in this process, and no noise per start-up phase.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        if not torch.cuda.is_available() and dict(engine_args or {}).get("enforce_eager", True):
            # vLLM compiles its log-prob functions even in eager mode: 18 s of C++ compiler on two
            # cores at the first request, for kernels of microseconds.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        try:
            from vllm import EngineArgs, LLMEngine
        except ImportError as error:
            raise ResourceError(
                f"sampler.engine is vllm, but vLLM cannot be imported here ({error}). Install it "
                f"(locks/cpu.txt or locks/gpu.txt), or set sampler.engine=transformers."
            ) from error
        logging.getLogger("vllm").setLevel(logging.ERROR)
        given = dict(engine_args or {})
        ours = {
            "model": str(model),
            "dtype": dtype,
            "max_model_len": max_length,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            "seed": seed,
        }
        defaults = {"enforce_eager": True, "max_num_seqs": max_batch}
        if not torch.cuda.is_available():
            # A seeded request whose prompt is prefilled in chunks takes its generator back by an
            # offset, which CPU generators lack ("CPU Generator does not use offset").
            ours |= {"enable_chunked_prefill": False}
            defaults |= {"max_num_batched_tokens": max(8192, max_length)}
        else:
            defaults |= {"enable_sleep_mode": True}
        self._engine = LLMEngine.from_engine_args(EngineArgs(**{**defaults, **given, **ours}))
        self.adapter: Any = None  # vLLM's LoRARequest of the adapter in use; `lora` sets it
        self.row_noise = bool(given.get("enable_lora"))
        self._slots = int(given.get("max_loras", 1))
        self._model, self._adapters = Path(model), itertools.count(1)
        self._members: dict[int, Any] = {}  # adapters by member, in `generate_members`
        self._names = itertools.count()
        self._parts: dict[str, list[tuple[int, Any]]] = {}  # (version, output) by request
        self._desk: Desk | None = None
        self._finished, self._asked = 0, 0

    def generate(
        self, requests: list[Request], sampling: Sampling, desk: Desk | None = None
    ) -> list[Completion]:
        """Completes every request; the order is kept."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._finished, self._asked, self._desk = 0, len(requests), desk
        # Token by token only if weights may change on the way: it costs a little.
        kind = RequestOutputKind.FINAL_ONLY if desk is None else RequestOutputKind.DELTA
        names = [self._name(index) for index in range(len(requests))]
        for name, request in zip(names, requests, strict=True):
            params = SamplingParams(
                temperature=0.0 if sampling.greedy else sampling.temperature,
                top_p=1.0 if sampling.greedy else sampling.top_p,
                top_k=0 if sampling.greedy else sampling.top_k,
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                seed=None if sampling.greedy else request.seed,
                stop_token_ids=list(sampling.stop_ids),
                ignore_eos=True,  # every stop token, the model's own too, is in stop_ids
                logprobs=0,
                detokenize=False,
                output_kind=kind,
            )
            self._engine.add_request(
                name,
                _prompt(request.prompt_ids),
                params,
                lora_request=self._members.get(request.member, self.adapter),
            )
        while self._engine.has_unfinished_requests():
            if desk is not None:
                desk.serve()
            self._step()
        self._desk = None
        return [_completion(self._parts.pop(name), desk is not None) for name in names]

    def generate_members(
        self,
        requests: list[Request],
        sampling: Sampling,
        members: Sequence[Noise],
        drawing: Drawing,
    ) -> list[Completion]:
        """`generate`, each request under its member's low-rank noise; the weights stay as they are."""
        done: dict[int, Completion] = {}
        for first in range(0, len(members), self._slots):
            part = range(first, min(first + self._slots, len(members)))
            chosen = [i for i, request in enumerate(requests) if request.member in part]
            noise = [members[m] for m in part]
            with adapters(self, self._model, noise, drawing, self._adapters) as loaded:
                self._members = dict(zip(part, loaded, strict=True))
                found = self.generate([requests[i] for i in chosen], sampling)
                self._members = {}
            done.update(zip(chosen, found, strict=True))
        return [done[i] for i in range(len(requests))]

    def _step(self) -> list[Any]:
        """One step of the engine, which may serve requests of `generate` and of `score` at once."""
        version = self._desk.version if self._desk else 0
        outputs: list[Any] = self._engine.step()
        for output in outputs:
            self._parts.setdefault(output.request_id, []).append((version, output))
            self._finished += output.finished
        return outputs

    def score(self, ids: list[int]) -> np.ndarray:
        """Log-probs `[L-1]` at temperature 1 of `ids[1:]`, each given what precedes it."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        name = self._name(0)
        self._engine.add_request(name, _prompt(ids), params, lora_request=self.adapter)
        while not any(o.request_id == name and o.finished for o in self._step()):
            pass
        self._finished -= 1  # nobody asked `progress` about it
        found = next(o.prompt_logprobs for _, o in self._parts.pop(name) if o.prompt_logprobs)
        pairs = zip(found[1:], ids[1:], strict=True)
        return np.array([at[token].logprob for at, token in pairs], np.float32)

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Reloads the weights in place; works where linears were repacked, as on CPU."""
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
        self._engine.collective_rpc(_repack_tied_head)

    def rpc(self, method: str | Callable[..., Any], **kwargs: Any) -> list[Any]:
        """`method`, by name or as `method(worker, **kwargs)`, on every worker; one answer each."""
        return self._engine.collective_rpc(method, kwargs=kwargs)

    def progress(self) -> tuple[int, int]:
        return self._finished, self._asked

    def sleep(self) -> None:
        """Frees GPU memory: weights move to the host, the cache is dropped. Nothing on CPU."""
        if torch.cuda.is_available():
            self._engine.sleep(level=1)

    def wake(self) -> None:
        if torch.cuda.is_available():
            self._engine.wake_up()

    def _name(self, index: int) -> str:
        return f"{index}-{next(self._names)}"  # vLLM wants every name new


def _repack_tied_head(worker: Any) -> None:
    """Brings a tied output head up to date after a reload.

    vLLM's CPU build multiplies with a packed copy of each weight, made again for every layer that was
    handed a tensor. A tied head that is a layer of its own (Llama) is handed none, since its weight
    is the embedding's: without this it keeps the packed weights of the start for ever.
    """
    model = worker.model_runner.get_model()
    head = getattr(model, "lm_head", None)
    embedding: Any = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or head is embedding or not hasattr(head, "cpu_linear"):
        return
    if getattr(worker.model_runner.model_config.hf_config, "tie_word_embeddings", False):
        head.weight = embedding.weight
        head.quant_method.process_weights_after_loading(head)


def _prompt(ids: Iterable[int]) -> Any:
    from vllm.inputs import TokensPrompt

    return TokensPrompt(prompt_token_ids=list(ids))


def _completion(parts: list[tuple[int, Any]], with_version: bool) -> Completion:
    said = [(version, output.outputs[0]) for version, output in parts]
    ids = np.array([t for _, part in said for t in part.token_ids], np.int32)
    at = [by_token for _, part in said for by_token in part.logprobs]
    logp = np.array([by[int(t)].logprob for by, t in zip(at, ids, strict=True)], np.float32)
    drawn = None
    if with_version:
        drawn = np.array([v for v, part in said for _ in part.token_ids], np.int32)
    return Completion(ids, logp, said[-1][1].finish_reason == "stop", drawn)
