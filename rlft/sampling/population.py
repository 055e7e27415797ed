"""The sampler of evolution strategies: draws the answers of members, each under weights of its own.

It keeps the float32 master that it was last sent, as it lies in the object store (all samplers of a
node share that memory), or as its own copy once it has replayed a step. A member's weights overwrite
those of the member before; before anything else is asked of the engine, `cast(master)` is put back.
With LoRA the master is the adapter, and what it is merged into is read from the start's folder.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rlft import registry
from rlft.config import Lora
from rlft.errors import WeightsMismatch
from rlft.learning.adapter_noise import WithoutAdapters, of_adapter, whole_weights
from rlft.learning.noise import Drawing, Noise, NoiseStep, blend, take_step
from rlft.learning.start_weights import StartWeights
from rlft.sampling.low_rank import with_matrices
from rlft.sampling.sampler import Ask, Head, Sampler
from rlft.types import Request, Row, Sampling, WeightUpdate
from rlft.weights.fingerprint import check_manifest, fingerprint


@contextmanager
def _outside_inference_mode() -> Iterator[None]:
    """For tensors that `blend` writes: its threads are not in an engine's inference mode, and what was
    made in that mode may be changed in that mode only."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class PopulationSampler(Sampler):
    """A sampler that can perturb its engine's weights. Its master is the learner's, proved by hashes."""

    _whole: dict[str, torch.Tensor]
    _master: dict[str, torch.Tensor]
    _owned = False
    _pristine = True

    def _engine_args(self) -> dict[str, Any]:
        args, cfg = super()._engine_args(), self._cfg
        engine, algo = (
            registry.resolve("engine", cfg.sampler.engine),
            registry.build("algo", cfg.algo),
        )
        rank = getattr(algo, "rank", 0)
        if not rank or not cfg.sampler.gpus or not hasattr(engine, "member_args"):
            return args
        return {**engine.member_args(rank, algo.together), **args}

    def load(self, update: WeightUpdate, payload: Any) -> int:
        """Takes a master, or replays a step on the one it holds; both proved tensor by tensor.

        Raises WeightsMismatch, also for a step that does not apply to the version held.
        """
        if update.kind == "noise":
            return self._replay(update)
        version = super().load(update, payload)
        # Noise depends on the type of device, and the learner draws it on its own: where it has a GPU,
        # samplers have one too (`check_by_noise`), and draw there.
        received = self._transport.receive(update, payload)
        self._whole = {n: t.to(self._draws_on) for n, t in received}
        self._master = {n: t for n, t in self._whole.items() if of_adapter(n)}
        self._master = self._master or self._whole
        self._owned, self._pristine = False, True
        return version

    @property
    def _draws_on(self) -> str:
        return "cuda" if self._cfg.learner.gpus else "cpu"

    def _loader(self) -> Any:
        return self._engine if self._cfg.model.lora is None else WithoutAdapters(self._engine)

    def generate(
        self, asks: Sequence[Ask], sampling: Sampling
    ) -> tuple[tuple[float, int, list[Head]], list[Row]]:
        """See `Sampler.generate`; under the master's weights."""
        self._restore()
        return super().generate(asks, sampling)

    def score(self, ids: list[int]) -> np.ndarray:
        """See `Sampler.score`; under the master's weights."""
        self._restore()
        return super().score(ids)

    def population(
        self, members: Sequence[Noise], drawing: Drawing, asks: Sequence[Ask], sampling: Sampling
    ) -> tuple[tuple[float, float, int, list[Head]], list[Row]]:
        """Completes every prompt under every member: all of the first member's, then the second's.

        Returns ((seconds it took, of which perturbing, version held, heads), rows). Low-rank members
        go through together if the engine can add noise row by row, else one at a time like others.
        """
        began = time.monotonic()
        jobs = [(ask, seed) for ask in asks for seed in ask.seeds]
        drawing = with_matrices(drawing, self._folder)
        together = drawing.rank and getattr(self._engine, "row_noise", False)
        heads: list[Head] = []
        rows: list[Row] = []
        perturbing = 0.0
        for part in [list(members)] if together else [[m] for m in members]:
            requests = [
                Request(ask.prompt + ask.prefix, seed, place)
                for place in range(len(part))
                for ask, seed in jobs
            ]
            if together:
                self._restore()
                done = self._engine.generate_members(requests, sampling, part, drawing)
            else:
                perturbing += self._perturb(part, drawing)
                done = self._engine.generate(requests, sampling)
            found = self._described(jobs * len(part), done, sampling)
            heads += found[0]
            rows += found[1]
        return (time.monotonic() - began, perturbing, self._desk.version, heads), rows

    def _perturb(self, terms: Sequence[Noise], drawing: Drawing) -> float:
        """Puts `cast(master + noise)` into the engine: in place if it exposes its weights, else
        through a reload. Returns the seconds that took."""
        began = time.monotonic()
        self._pristine = False
        own = self._engine.weights() if hasattr(self._engine, "weights") else None
        with torch.inference_mode():
            if self._cfg.model.lora is not None:
                self._engine.load(self._adapted(self._cfg.model.lora, terms, drawing))
            elif own is not None:
                blend(own, self._master, terms, drawing)
            else:
                self._engine.load(self._stream(terms, drawing))
        return time.monotonic() - began

    def _stream(
        self, terms: Sequence[Noise], drawing: Drawing
    ) -> Iterator[tuple[str, torch.Tensor]]:
        dtype = getattr(torch, self._cfg.model.dtype)
        if drawing.mode == "iid":  # numbers its tensors
            with _outside_inference_mode():
                whole = {n: torch.empty_like(m, dtype=dtype) for n, m in self._master.items()}
                blend(whole, self._master, terms, drawing)
            yield from ((name, out.cpu()) for name, out in whole.items())
            return
        for name, master in self._master.items():
            with _outside_inference_mode():
                out = torch.empty_like(master, dtype=dtype)
                blend({name: out}, {name: master}, terms, drawing)
            yield name, out.cpu()  # an engine may be another process

    @functools.cached_property
    def _start(self) -> StartWeights:
        """The weights that an adapter adds to; opened once, not for every member."""
        model = self._cfg.model.model_copy(update={"lora": None})
        return StartWeights(self._folder, self._cfg.model_copy(update={"model": model}))

    def _adapted(
        self, lora: Lora, terms: Sequence[Noise], drawing: Drawing
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, of an adapter that is perturbed."""
        with _outside_inference_mode():
            moved = {n: torch.empty_like(m) for n, m in self._master.items()}
            blend(moved, self._master, terms, drawing)
        moved = {n: t.cpu() for n, t in moved.items()}
        plain = {n: t.cpu() for n, t in self._whole.items() if not of_adapter(n)}
        yield from whole_weights(
            plain, moved, self._start, lora, getattr(torch, self._cfg.model.dtype)
        )

    def _restore(self) -> None:
        if not self._pristine:
            self._perturb((), Drawing())
            self._pristine = True

    def _replay(self, update: WeightUpdate) -> int:
        step, held = update.source, self._desk.version
        assert isinstance(step, NoiseStep)
        if held != update.base:
            raise WeightsMismatch(
                f"{self._name} holds version {held} and was sent a step from {update.base} to "
                f"{update.version}; it needs the weights themselves"
            )
        if not self._owned:  # what lies in the object store belongs to all, and is read-only
            self._master = {n: m.clone() for n, m in self._master.items()}
            self._owned = True
        whole = replace(step, drawing=with_matrices(step.drawing, self._folder))
        take_step(self._master, whole, StartWeights(self._folder, self._cfg))
        handed = (fingerprint(n, t.cpu()) for n, t in self._master.items())
        check_manifest(update.manifest, handed, receiver=self._name)
        self._pristine = False
        self._restore()
        self._desk.version = update.version
        return update.version
