"""Batched generation with `transformers` and a KV cache: for machines without vLLM, and for tests.

Every row draws from a generator of its own, seeded by its request. Prompts are padded on the left.
Finished rows leave the batch once they are half of it, so that one long completion does not pay for
all the short ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.errors import WeightsMismatch
from rlft.learning.noise import Drawing, Noise
from rlft.sampling.desk import Desk
from rlft.sampling.low_rank import RowNoise
from rlft.sampling.prefill import prefill
from rlft.types import Completion, Request, Sampling


class TransformersEngine:
    """Plain transformers with a KV cache: no vLLM needed. `engine_args` go to `from_pretrained`."""

    row_noise = True

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
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(model), dtype=getattr(torch, dtype), **(engine_args or {})
        )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = loaded.to(self._device).eval().requires_grad_(False)
        # The last position of each row is a slice that is not contiguous; handed as it is, torch would
        # copy the whole output head once a row (7 GB for 128 rows of SmolLM2).
        self._model.get_output_embeddings().register_forward_pre_hook(
            lambda _, args: (args[0].contiguous(),)
        )
        self._max_batch = max_batch
        self._finished, self._asked = 0, 0
        self._row_noise: RowNoise | None = None

    @torch.inference_mode()
    def generate(
        self, requests: list[Request], sampling: Sampling, desk: Desk | None = None
    ) -> list[Completion]:
        """Completes every request; the order is kept."""
        self._finished, self._asked = 0, len(requests)
        # Similar lengths together: less padding. The result of a row does not depend on its batch
        # beyond rounding, and the batches depend on the requests alone.
        order = sorted(
            range(len(requests)), key=lambda i: (requests[i].member, len(requests[i].prompt_ids), i)
        )
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self._max_batch):
            part = order[start : start + self._max_batch]
            completions = self._decode([requests[i] for i in part], sampling, desk)
            done.update(zip(part, completions, strict=True))
        return [done[i] for i in range(len(requests))]

    @torch.inference_mode()
    def generate_members(
        self,
        requests: list[Request],
        sampling: Sampling,
        members: Sequence[Noise],
        drawing: Drawing,
    ) -> list[Completion]:
        """`generate`, each request under its member's low-rank noise; the weights stay as they are."""
        with RowNoise(self._model, members, drawing) as self._row_noise:
            completions = self.generate(requests, sampling)
        self._row_noise = None
        return completions

    def _decode(
        self, requests: list[Request], sampling: Sampling, desk: Desk | None
    ) -> list[Completion]:
        num = len(requests)
        generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        stops = torch.tensor(sorted(sampling.stop_ids), dtype=torch.int64)
        alive = torch.arange(num)  # rows still in the batch, by request
        running = torch.ones(num, dtype=torch.bool)  # of those, which have not stopped
        tokens: list[list[int]] = [[] for _ in requests]
        logps: list[list[float]] = [[] for _ in requests]
        versions: list[list[int]] = [[] for _ in requests]
        stopped = [False] * num
        if desk is not None:
            desk.serve()
        owners = [r.member if self._row_noise else 0 for r in requests]
        read = prefill(self._model, [r.prompt_ids for r in requests], owners, self._place)
        logits, cache, attention, position = read.logits, read.cache, read.attention, read.position
        self._place(owners)
        for step in range(sampling.max_tokens):
            forbid = stops if step < sampling.min_tokens else None
            rows = [generators[i] for i in alive.tolist()]
            chosen, logp = _choose(logits.float().cpu(), sampling, rows, forbid)
            ends = torch.isin(chosen, stops)
            for place, row in enumerate(alive.tolist()):
                if running[place]:
                    tokens[row].append(int(chosen[place]))
                    logps[row].append(float(logp[place]))
                    versions[row].append(desk.version if desk else 0)
                    stopped[row] = bool(ends[place])
            self._finished += int((running & ends).sum())
            running &= ~ends
            if not running.any() or step == sampling.max_tokens - 1:
                break
            ids = chosen[:, None].to(self._device)
            attention = torch.cat([attention, attention.new_ones(len(alive), 1)], dim=1)
            position = position[:, -1:] + 1
            if running.sum() * 2 <= len(running):
                keep = running.nonzero().squeeze(1)
                kept = keep.to(self._device)
                cache.batch_select_indices(kept)
                ids, attention, position = ids[kept], attention[kept], position[kept]
                alive, running = alive[keep], running[keep]
                self._place([owners[i] for i in alive.tolist()])
            if desk is not None:
                desk.serve()
            logits = self._model(
                input_ids=ids,
                attention_mask=attention,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        self._finished += int(running.sum())
        return [
            Completion(
                np.array(t, np.int32),
                np.array(p, np.float32),
                s,
                np.array(v, np.int32) if desk else None,
            )
            for t, p, s, v in zip(tokens, logps, stopped, versions, strict=True)
        ]

    @torch.inference_mode()
    def score(self, ids: list[int]) -> np.ndarray:
        """Log-probs `[L-1]` at temperature 1 of `ids[1:]`, each given what precedes it."""
        row = torch.tensor([ids], device=self._device)
        logp = torch.log_softmax(self._model(input_ids=row).logits[0, :-1].float(), dim=-1)
        return logp.gather(1, row[0, 1:, None]).squeeze(1).cpu().numpy()

    @torch.inference_mode()
    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copies each tensor into the parameter of its name."""
        own = dict(self._model.named_parameters())
        for name, tensor in tensors:
            if name not in own:
                raise WeightsMismatch(f"the engine's model has no parameter {name!r}")
            own[name].copy_(tensor)

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters themselves, to be changed in place."""
        return dict(self._model.named_parameters())

    def progress(self) -> tuple[int, int]:
        return self._finished, self._asked

    def _place(self, owners: Sequence[int]) -> None:
        if self._row_noise is not None:
            self._row_noise.place(owners)

    def sleep(self) -> None:
        """Moves the weights to the host, off a GPU that the learner needs."""
        if self._device.type == "cuda":
            self._model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self._model.to(self._device)


def _choose(
    logits_NV: torch.Tensor,
    sampling: Sampling,
    generators: list[torch.Generator],
    forbidden: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns chosen tokens and their log-probs `[N]` under the distribution they were drawn from."""
    if forbidden is not None and len(forbidden):
        logits_NV[:, forbidden] = -torch.inf
    if sampling.greedy:
        logp_NV = torch.log_softmax(logits_NV, dim=-1)
        chosen = logits_NV.argmax(dim=-1)
        return chosen, logp_NV.gather(1, chosen[:, None]).squeeze(1)
    logits_NV = _truncated(logits_NV / sampling.temperature, sampling)
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    # Exponential race: argmax p / E with E ~ Exp(1) is a draw from p, one generator a row.
    race = torch.empty_like(logp_NV)
    for row, generator in enumerate(generators):
        race[row].exponential_(generator=generator)
    chosen = (logp_NV - race.log()).argmax(dim=-1)
    return chosen, logp_NV.gather(1, chosen[:, None]).squeeze(1)


def _truncated(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Top-k, then top-p: everything else becomes -inf."""
    if sampling.top_k:
        least = logits_NV.topk(min(sampling.top_k, logits_NV.shape[1]), dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits_NV.sort(dim=-1, descending=True)
        share = ordered.softmax(dim=-1)
        # Keep a token while the mass before it is below top_p: the first is always kept.
        ordered = ordered.masked_fill(share.cumsum(dim=-1) - share >= sampling.top_p, -torch.inf)
        logits_NV = torch.empty_like(logits_NV).scatter_(1, index, ordered)
    return logits_NV
