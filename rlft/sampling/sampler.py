"""The sampler actor: an engine, a tokenizer to turn samples into text, and the version it holds."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rlft import registry
from rlft.cluster import stacks
from rlft.config import Config
from rlft.errors import WeightsMismatch
from rlft.policy.text import Text
from rlft.sampling.desk import Desk
from rlft.types import Request, Row, Sampling, WeightUpdate
from rlft.weights.fingerprint import check_manifest
from rlft.weights.transports import Meeting

Head = tuple[str, int, bool, tuple[int, int]]
"""What the driver learns of a completion: (text, number of tokens, truncated, (oldest, newest) version
that drew its tokens)."""


class Sampler:
    """Generates completions and takes weights. Its per-token arrays go to the object store."""

    def __init__(self, name: str, cfg: Config, folder: Path) -> None:
        self._where = stacks.register(name)
        self._name, self._cfg, self._folder = name, cfg, folder
        self._text = Text(folder, cfg.sampler.stop)
        self._transport = registry.build("transport", cfg.publish.transport)
        self._desk = Desk()

    def start(self) -> None:
        """Builds the engine and pays the one-off costs of a first request.

        Not in the constructor: Ray runs that on another thread than the methods, and OpenMP keeps a
        pool of threads for each thread that computes. With two pools vLLM decodes a third slower.
        """
        cfg = self._cfg
        engine = registry.resolve("engine", cfg.sampler.engine)
        self._engine = engine(
            self._folder,
            dtype=cfg.model.dtype,
            max_length=cfg.model.max_length,
            max_batch=cfg.sampler.max_batch,
            temperature=cfg.sampler.temperature,
            engine_args={
                **cfg.sampler.engine_args,
                **self._transport.engine_args(cfg.model.lora),
            },
        )
        stops = self._text.stop_ids
        self._engine.generate([Request((stops[0],), 0)], Sampling(max_tokens=2, stop_ids=stops))

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def generate(
        self, prompts: list[tuple[list[int], list[int]]], sampling: Sampling
    ) -> tuple[tuple[float, list[Head]], list[Row]]:
        """Completes each (prompt tokens, seeds) once a seed.

        Returns ((seconds it took, heads), rows), two objects of the store: heads for the driver, and
        rows that stay where they are until a learner rank asks for them.
        """
        began = time.monotonic()
        requests = [Request(tuple(ids), seed) for ids, seeds in prompts for seed in seeds]
        desk = (self._desk,) if self._cfg.max_staleness else ()
        completions = self._engine.generate(requests, sampling, *desk)
        heads, rows = [], []
        for request, completion in zip(requests, completions, strict=True):
            text, drawn = self._text.decode(completion.ids), completion.version
            versions = (self._desk.version,) * 2
            if drawn is not None:
                versions = (int(drawn.min()), int(drawn.max()))
            heads.append((text, len(completion.ids), not completion.stopped, versions))
            ids = np.concatenate([np.array(request.prompt_ids, np.int32), completion.ids])
            rows.append(Row(ids, len(request.prompt_ids), completion.logp, drawn))
        return (time.monotonic() - began, heads), rows

    @ray.method(concurrency_group="between")
    def between(self, job: int, method: str, *args: Any) -> Any:
        """`method(*args)` by the engine's own thread, between two tokens if it is decoding.

        Needs a `serve` of the same job, for when it is not. job: a number of its own.
        """
        return self._desk.ask(job, functools.partial(getattr(self, method), *args))

    def serve(self, job: int) -> None:
        """Waits until `job` is done, here or in a `generate` before this."""
        self._desk.serve_until(job)

    def meet(self, meeting: Meeting, index: int) -> None:
        """Joins the learner; call it on rank 0 and on every sampler at once."""
        self._transport.meet_engine(self._engine, meeting, index)

    def take(self) -> None:
        """Receives what a concurrent transport's `send` streams; `load` then checks it."""
        self._transport.take(self._engine)

    def load(self, update: WeightUpdate, payload: Any) -> int:
        """Replaces the weights, proves what the loader was handed, and returns the new version.

        Raises WeightsMismatch naming the tensors that are missing, unexpected or different.
        """
        handed = self._transport.deliver(self._engine, update, payload)
        check_manifest(update.manifest, handed, receiver=self._name)
        held = self._desk.version
        if update.version <= held:
            raise WeightsMismatch(
                f"{self._name} holds version {held} and was sent version {update.version}"
            )
        self._desk.version = update.version
        return update.version

    def score(self, ids: list[int]) -> np.ndarray:
        """Log-probs `[L-1]` of the canary prompt, at temperature 1."""
        return self._engine.score(ids)

    def sleep(self) -> None:
        """Frees the accelerator for a colocated learner."""
        self._engine.sleep()

    def wake(self) -> None:
        self._engine.wake()

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int]:
        """(finished, asked for) of the generation under way; answered on a thread of its own."""
        return self._engine.progress()
