"""The learner of methods without a gradient: a float32 master that moves by noise.

No optimizer, no backward pass, no DeepSpeed. Beside the master it holds the model in its own dtype, to
score the canary and, for MeZO, to measure losses under perturbed weights. Trained are all parameters,
or with LoRA the adapter's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import xxhash

from rlft import registry
from rlft.batch import assemble, plan
from rlft.cluster import stacks
from rlft.config import Config
from rlft.errors import CheckpointError
from rlft.learning.adapter_noise import adapted, of_adapter, with_adapter
from rlft.learning.noise import Drawing, Noise, NoiseStep, blend, distance, take_step
from rlft.learning.rank import fetch_rows, free_address
from rlft.learning.start_weights import StartWeights
from rlft.policy.lm import load_lm
from rlft.policy.text import Text
from rlft.sampling.low_rank import with_matrices
from rlft.types import RowRef, WeightUpdate
from rlft.weights.fingerprint import fingerprint


class NoiseRank:
    """Holds the master. It is one process: `learner.num` is 1."""

    def __init__(self, name: str, cfg: Config, folder: Path) -> None:
        self._where = stacks.register(name)
        self._cfg, self._folder = cfg, folder
        self._transport = registry.build("transport", cfg.publish.transport)
        self._text = Text(folder)
        self._progress = (0, 0)
        self._step: NoiseStep | None = None  # taken since the last `send`
        self._best: dict[str, torch.Tensor] = {}

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def address(self) -> tuple[str, int]:
        """As of any learner, though nobody comes."""
        return free_address()

    def connect(self, address: tuple[str, int]) -> list[str]:
        """Loads the model; returns notes for the user."""
        cfg = self._cfg
        device = torch.device("cuda" if cfg.learner.gpus else "cpu")
        policy = load_lm(self._folder, "float32", lora=cfg.model.lora, seed=cfg.seed).to(device)
        self._causal = policy.causal_lm()
        named = self._causal.named_parameters()
        self._parameters = {n: p for n, p in named if cfg.model.lora is None or of_adapter(n)}
        self._master = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._policy = policy.to(getattr(torch, cfg.model.dtype)).eval().requires_grad_(False)
        self._device, self._anchor = device, StartWeights(self._folder, cfg)
        return self._reach()

    def _reach(self) -> list[str]:
        """What low-rank noise moves of the model, for a person."""
        rank = getattr(registry.build("algo", self._cfg.algo), "rank", 0)
        if not rank:
            return []
        moved = with_matrices(Drawing(rank=rank), self._folder).matrices
        share = sum(self._master[n].numel() for n in moved) / sum(
            t.numel() for t in self._master.values()
        )
        return [
            f"noise of rank {rank} moves {len(moved)} of {len(self._master)} weights, {share:.0%} of all "
            f"numbers; the others stay as they are"
        ]

    @torch.no_grad()
    def add_noise(self, step: NoiseStep) -> dict[str, float]:
        """Moves the master; returns the lengths of the step and of the way from the start weights."""
        whole = replace(step, drawing=with_matrices(step.drawing, self._folder))
        length = take_step(self._master, whole, self._anchor)
        self._step = step
        self._restore()
        return {"update_norm": length, "distance": distance(self._master, self._anchor)}

    @torch.no_grad()
    def losses(self, probes: Sequence[Noise], drawing: Drawing, refs: list[RowRef]) -> list[float]:
        """The mean negative log-likelihood over the tokens of all responses under each probe, in nats.
        The rows go through in the same micro-batches every time."""
        held = fetch_rows(list(range(len(refs))), refs, self._cfg.deadlines.learn)
        lengths = [len(held[i].ids) for i in range(len(refs))]
        [update] = plan(lengths, world=1, budget=self._cfg.learner.token_budget)
        batches = [
            assemble([held[i] for i in micro], self._text.pad_id) for micro in update.ranks[0]
        ]
        tokens = int(sum(b.mask.sum() for b in batches))
        self._progress = (0, len(probes) * len(batches))
        found = []
        for probe in probes:
            blend(self._parameters, self._master, [probe], drawing)
            total = 0.0
            for batch in batches:
                ids, position, mask = (
                    x.to(self._device) for x in (batch.ids, batch.position, batch.mask)
                )
                logp, _ = self._policy(ids, position, mask, 1.0)
                total -= float(logp[mask].double().sum())
                self._progress = (self._progress[0] + 1, self._progress[1])
            found.append(total / tokens)
        self._restore()
        return found

    def keep_best(self) -> None:
        """Keeps the weights of now."""
        self._best = {n: t.clone() for n, t in self._master.items()}

    @torch.no_grad()
    def recall_best(self) -> None:
        """Puts back what `keep_best` kept."""
        for name, tensor in self._best.items():
            self._master[name].copy_(tensor)
        self._step = None  # no step leads there: the weights are sent
        self._restore()

    def send(self, version: int) -> WeightUpdate:
        """Publishes the master as `version`: the step to replay, if it is one, else the weights."""
        step, self._step = self._step, None
        if step is None or not step.by_seeds:
            return self.snapshot(version)
        manifest = tuple(fingerprint(n, t.cpu()) for n, t in self._master.items())
        return WeightUpdate(version, version - 1, "noise", manifest, step)

    def snapshot(self, version: int) -> WeightUpdate:
        """The weights themselves, for an engine that cannot replay."""
        return self._transport.send(self._sent(), version, ray.put)

    def canary(self, ids: list[int]) -> np.ndarray:
        """The model's own log-probs `[L-1]` of the canary prompt at temperature 1."""
        row = torch.tensor([ids], device=self._device)
        position = torch.arange(1, len(ids), device=self._device)[None]
        with torch.no_grad():
            logp, _ = self._policy(row, position, torch.ones_like(position, dtype=torch.bool), 1.0)
        return logp[0].cpu().numpy()

    def digest(self) -> dict[str, Any]:
        """A hash of all weights, and the number of threads."""
        hashes = "".join(fingerprint(*pair).hash for pair in self._whole())
        whole = xxhash.xxh3_64_hexdigest(hashes.encode())
        return {"weights": whole, "threads": torch.get_num_threads()}

    def save(self, folder: Path) -> None:
        """Writes the master, and a Hugging Face folder in the model's dtype."""
        from safetensors.torch import save_file

        state = folder / "learner_state"
        state.mkdir(parents=True)
        master = {n: t.cpu().contiguous() for n, t in self._master.items()}
        save_file(master, state / "master.safetensors")
        if self._best:
            save_file(
                {n: t.cpu().contiguous() for n, t in self._best.items()}, state / "best.safetensors"
            )
        (state / "start.json").write_text(json.dumps({"hash": self._anchor.digest()}))
        self.write_model(folder / "model")

    def write_model(self, folder: Path) -> None:
        """Writes a Hugging Face folder in the model's dtype."""
        from rlft.record.hf_folder import write_hf_folder

        dtype = getattr(torch, self._cfg.model.dtype)
        write_hf_folder(folder, ((n, t.to(dtype)) for n, t in self._whole()), self._folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. Raises CheckpointError if that run had another start model."""
        from safetensors.torch import load_file

        state = folder / "learner_state"
        there = json.loads((state / "start.json").read_text())["hash"]
        if there != self._anchor.digest():
            raise CheckpointError(
                f"{folder} belongs to a run that started from another model (weights with hash "
                f"{there}, here {self._anchor.digest()} in {self._folder}); resume it with its own"
            )
        for name, tensor in load_file(state / "master.safetensors").items():
            self._master[name].copy_(tensor)
        if (state / "best.safetensors").exists():
            self._best = load_file(state / "best.safetensors")
        self._step = None
        self._restore()

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int]:
        """(micro-batches done, all) of the losses under way; answered on a thread of its own."""
        return self._progress

    def _restore(self) -> None:
        blend(self._parameters, self._master, [], Drawing())

    def _sent(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole model, and the adapter by itself: members are perturbed in it."""
        yield from self._whole()
        if self._cfg.model.lora is not None:
            yield from ((name, tensor.cpu()) for name, tensor in self._master.items())

    def _whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Hugging Face name, float32 on the CPU) of the whole model, adapters merged."""
        if self._cfg.model.lora is None:
            for name, tensor in self._master.items():
                yield name, tensor.cpu()
            return
        lora, pairs = self._cfg.model.lora, adapted(self._master)
        for name, parameter in self._causal.named_parameters():
            if of_adapter(name):
                continue
            plain, tensor = name.replace(".base_layer.", "."), parameter.detach().float()
            if plain in pairs:
                down, up = (self._master[n] for n in pairs[plain])
                tensor = with_adapter(tensor, down, up, lora.scale)
            yield plain, tensor.cpu()
