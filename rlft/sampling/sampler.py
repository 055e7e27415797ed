"""The sampler actor: an engine, a tokenizer to turn samples into text, and the version it holds."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from rlft.sampling.turns import Turn, extended
from rlft.types import Completion, Request, Row, Sampling, WeightUpdate
from rlft.weights.fingerprint import check_manifest
from rlft.weights.transports import Meeting

Head = tuple[str, int, bool, tuple[int, int]]
"""What the driver learns of a completion: (text of the response, tokens sampled, truncated, (oldest,
newest) version that drew them)."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt to complete once a seed, after `prefix`: tokens that the response begins with.

    trained: the prefix is part of the response's row, with NaN for `sample_logp`; else of its prompt.
    """

    prompt: tuple[int, ...]
    seeds: tuple[int, ...]
    prefix: tuple[int, ...] = ()
    trained: bool = True


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
            engine_args=self._engine_args(),
        )
        stops = self._text.stop_ids
        self._engine.generate([Request((stops[0],), 0)], Sampling(max_tokens=2, stop_ids=stops))

    def _engine_args(self) -> dict[str, Any]:
        cfg = self._cfg
        return {**cfg.sampler.engine_args, **self._transport.engine_args(cfg.model.lora)}

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def generate(
        self, asks: Sequence[Ask], sampling: Sampling
    ) -> tuple[tuple[float, int, list[Head]], list[Row]]:
        """Completes each prompt once a seed; a prefix counts towards `sampling.max_tokens`.

        Returns ((seconds it took, version held, heads), rows), two objects of the store: heads for the
        driver, and rows that stay where they are until a learner rank asks for them.
        """
        began = time.monotonic()
        jobs = [(ask, seed) for ask in asks for seed in ask.seeds]
        requests = [Request(ask.prompt + ask.prefix, seed) for ask, seed in jobs]
        desk = (self._desk,) if self._cfg.max_staleness else ()
        completions = self._engine.generate(requests, sampling, *desk)
        heads, rows = self._described(jobs, completions, sampling)
        return (time.monotonic() - began, self._desk.version, heads), rows

    def go_on(
        self, turns: Sequence[Turn], rows: Sequence[Row], sampling: Sampling
    ) -> tuple[tuple[float, int, list[tuple[Head, int]]], list[Row]]:
        """The next turn of episodes whose environment answered, as `generate`. rows: of the turn before.

        With each head comes how many tokens the environment's answer has. Without room for one more
        token the row stays as it is, and nothing is sampled.
        """
        began = time.monotonic()
        said = [self._text.reply_ids(t.said, t.role, int(rows[t.at].ids[-1])) for t in turns]
        room = [
            min(sampling.max_tokens, t.longest - len(rows[t.at].ids) - len(ids))
            for t, ids in zip(turns, said, strict=True)
        ]
        on = [i for i in range(len(turns)) if room[i] > 0]
        requests = [Request((*rows[turns[i].at].ids.tolist(), *said[i]), turns[i].seed) for i in on]
        desk = (self._desk,) if self._cfg.max_staleness else ()
        most = max((room[i] for i in on), default=1)
        within = replace(
            sampling, max_tokens=most, min_tokens=min([sampling.min_tokens, *(room[i] for i in on)])
        )
        drawn = dict(zip(on, self._engine.generate(requests, within, *desk), strict=True))
        heads: list[tuple[Head, int]] = []
        found = []
        for i, turn in enumerate(turns):
            if i not in drawn:
                version = self._desk.version
                heads.append((("", 0, True, (version, version)), 0))
                found.append(rows[turn.at])
                continue
            completion = _within(drawn[i], room[i])
            heads.append((self._head([*completion.ids], completion), len(said[i])))
            found.append(extended(rows[turn.at], said[i], completion))
        return (time.monotonic() - began, self._desk.version, heads), found

    def _head(self, ids: Sequence[int], completion: Completion) -> Head:
        """ids: the tokens that are shown as its text."""
        held, drawn = self._desk.version, completion.version
        versions = (held, held) if drawn is None else (int(drawn.min()), int(drawn.max()))
        return self._text.decode(ids), len(completion.ids), not completion.stopped, versions

    def _described(
        self, jobs: Sequence[tuple[Ask, int]], completions: list[Completion], sampling: Sampling
    ) -> tuple[list[Head], list[Row]]:
        """What the driver learns of each completion, and its row."""
        heads, rows = [], []
        for (ask, _), whole in zip(jobs, completions, strict=True):
            completion = _within(whole, sampling.max_tokens - len(ask.prefix))
            heads.append(self._head([*ask.prefix, *completion.ids], completion))
            rows.append(_row(ask, completion))
        return heads, rows

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
        handed = self._transport.deliver(self._loader(), update, payload)
        check_manifest(update.manifest, handed, receiver=self._name)
        held = self._desk.version
        if update.version <= held:
            raise WeightsMismatch(
                f"{self._name} holds version {held} and was sent version {update.version}"
            )
        self._desk.version = update.version
        return update.version

    def adopt(self, update: WeightUpdate, payload: Any, canary: list[int]) -> np.ndarray | None:
        """`load`, then what `score` says of `canary`: nothing comes between the two. A newcomer may have
        caught up with these weights already, or with later ones: then None."""
        if update.version < self._desk.version:
            return None
        if update.version > self._desk.version:
            self.load(update, payload)
        return self.score(canary)

    def _loader(self) -> Any:
        """What a transport gives weights to."""
        return self._engine

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


def _within(completion: Completion, room: int) -> Completion:
    """The completion, cut to `room` tokens."""
    if len(completion.ids) <= room:
        return completion
    version = None if completion.version is None else completion.version[:room]
    return Completion(completion.ids[:room], completion.logp[:room], False, version)


def _row(ask: Ask, completion: Completion) -> Row:
    ids = np.concatenate([np.array(ask.prompt + ask.prefix, np.int32), completion.ids])
    if not ask.trained:
        return Row(ids, len(ask.prompt) + len(ask.prefix), completion.logp, completion.version)
    unknown = np.full(len(ask.prefix), np.nan, np.float32)
    logp, version = np.concatenate([unknown, completion.logp]), completion.version
    if version is not None:
        version = np.concatenate([np.full(len(ask.prefix), -1, np.int32), version])
    return Row(ids, len(ask.prompt), logp, version)
