"""The learner actor: one data-parallel rank."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import xxhash

from rlft import registry
from rlft.cluster import stacks
from rlft.cluster.waits import fetch
from rlft.config import Config
from rlft.learning.anchors import reference_logp
from rlft.learning.appraisal import TokenSteps
from rlft.learning.critic import Critic
from rlft.learning.fit import FitJob, FitReport, run_fit
from rlft.learning.learner import Learner
from rlft.learning.retained import retained_writing
from rlft.policy.lm import LMPolicy, load_lm
from rlft.policy.reward_model import load_reward_model
from rlft.policy.text import Text
from rlft.policy.value import load_value
from rlft.retention.term import needs_of
from rlft.types import Row, RowRef, WeightUpdate
from rlft.weights.fingerprint import fingerprint
from rlft.weights.transports import Meeting


class LearnerRank:
    """Rank `rank` of the learner. `connect` is a collective: call it on every rank at once."""

    def __init__(
        self,
        name: str,
        cfg: Config,
        rank: int,
        folder: Path,
        needs: frozenset[str],
        critic: str | None = None,
    ) -> None:
        self._where = stacks.register(name)
        self._cfg, self._rank, self._folder = cfg, rank, folder
        self._needs = needs | needs_of(cfg)
        self._critic_path = critic or folder
        self._transport = registry.build("transport", cfg.publish.transport)
        self._progress = (0, 0)
        torch.manual_seed(cfg.seed)  # dropout, if the model has any

    @functools.cached_property
    def _text(self) -> Text:
        return Text(self._folder)

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def address(self) -> tuple[str, int]:
        """Where the ranks can meet."""
        return free_address()

    def connect(self, address: tuple[str, int]) -> list[str]:
        """Joins the process group, loads the model, builds the engine; returns notes for the user."""
        import deepspeed

        alone = self._cfg.learner.num == 1  # then the store takes a free port by itself
        os.environ |= {
            "MASTER_ADDR": address[0],
            "MASTER_PORT": str(0 if alone else address[1]),
            "RANK": str(self._rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self._cfg.learner.num),
        }
        # DeepSpeed would compile its own shared-memory all-reduce here, for a minute, under a lock file;
        # a process killed meanwhile leaves the file, and every later one waits for it without a word.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if self._cfg.learner.gpus else "gloo"
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        return self._build()

    def _build(self) -> list[str]:
        """Makes what is trained; returns notes for the user. A collective."""
        self._learner = Learner(self._cfg, self._policy())
        self._retained = retained_writing(self._cfg, self._learner)
        self._reference = None
        if "ref_logp" in self._needs:
            self._reference = reference_logp(self._cfg, self._learner, self._folder)
        self._critic = None
        if "value" in self._needs:
            self._critic = Critic(self._cfg, load_value(self._critic_path, self._cfg))
        return self._learner.notes

    def _policy(self) -> LMPolicy:
        """What is trained: a language model, or a reward model if a term reads its `score`."""
        model = self._cfg.model
        if "score" in self._needs:
            pad = self._text.pad_id
            return load_reward_model(self._folder, model, pad_id=pad, seed=self._cfg.seed)
        return load_lm(
            self._folder,
            model.dtype,
            lora=model.lora,
            gradient_checkpointing=model.gradient_checkpointing,
            seed=self._cfg.seed,
        )

    def fit(self, job: FitJob, refs: list[RowRef]) -> FitReport:
        """Takes the optimizer steps of `job`. `refs`: where each row lies. A collective."""
        mine = sorted({r for update in job.updates for m in update.ranks[self._rank] for r in m})
        return self.fit_rows(job, fetch_rows(mine, refs, self._cfg.deadlines.learn))

    def fit_rows(self, job: FitJob, rows: Mapping[int, Row]) -> FitReport:
        """`fit` with this rank's rows at hand, by index. A collective."""
        self._progress = (0, 0)
        return run_fit(
            self._learner,
            job,
            self._rank,
            rows,
            pad_id=self._text.pad_id,
            reference=self._reference,
            critic=self._critic,
            steps=_steps_in_tokens(job, rows, self._text),
            progress=self._note,
            retained=self._retained,
        )

    def send(self, version: int) -> WeightUpdate | None:
        """Publishes the weights as `version`; the description comes from rank 0. A collective."""
        whole = not self._transport.adapter_only
        tensors = self._learner.full_tensors() if whole else self._learner.adapter_tensors()
        if self._rank == 0:
            return self._transport.send(tensors, version, ray.put)
        for _ in tensors:
            pass
        return None

    def open(self, engines: int, workers: int) -> Meeting | None:
        """Where and how engines meet rank 0, for a transport that `meets`. A collective."""
        tensors = self._learner.full_tensors()
        if self._rank == 0:
            return self._transport.open(tensors, self.address(), engines, workers)
        for _ in tensors:
            pass
        return None

    def meet(self, meeting: Meeting) -> None:
        """Joins the engines; call it on rank 0 and on every sampler at once."""
        self._transport.meet_learner(meeting)

    def release(self) -> None:
        self._transport.release()

    def canary(self, ids: list[int]) -> np.ndarray:
        """The learner's own log-probs `[L-1]` of the canary prompt at temperature 1. A collective."""
        device = self._learner.device
        row = torch.tensor([ids], device=device)
        position = torch.arange(1, len(ids), device=device)[None]
        with torch.no_grad():
            out = self._learner.forward(
                row, position, torch.ones_like(position, dtype=torch.bool), 1.0
            )
        return out.logp[0].cpu().numpy()

    def digest(self) -> dict[str, Any]:
        """A hash of all weights, from rank 0, and this rank's threads. A collective."""
        hashes = [fingerprint(*pair).hash for pair in self._learner.full_tensors()]
        whole = xxhash.xxh3_64_hexdigest("".join(hashes).encode())
        return {"weights": whole, "threads": torch.get_num_threads()}

    def save(self, folder: Path) -> None:
        """Writes this rank's state, and on rank 0 the Hugging Face folder. A collective."""
        self._learner.save(folder / "learner_state")
        if self._critic is not None:
            self._critic.save(folder / "critic_state")
        self.write_model(folder / "model")

    def write_model(self, folder: Path) -> None:
        """Writes the Hugging Face folder, on rank 0. A collective."""
        tensors = self._learner.full_tensors()
        if self._rank == 0:
            from rlft.record.hf_folder import write_hf_folder

            write_hf_folder(folder, tensors, self._folder)
            self._learner.policy.describe(folder)
        else:
            for _ in tensors:
                pass

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. A collective."""
        self._learner.load(folder / "learner_state")
        if self._critic is not None:
            self._critic.load(folder / "critic_state")

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int]:
        """(micro-batches done, all) of the fit under way; answered on a thread of its own."""
        return self._progress

    def _note(self, done: int, total: int) -> None:
        self._progress = (done, total)


def _steps_in_tokens(job: FitJob, rows: Mapping[int, Row], text: Text) -> dict[int, TokenSteps]:
    """For each of these rows its steps as (index of the last token, value), if the job has steps."""
    if not job.steps:
        return {}
    return {
        index: tuple((decision_at(text, row, end), value) for end, value in job.steps[index])
        for index, row in rows.items()
    }


def decision_at(text: Text, row: Row, end: int) -> int:
    """The decision with which the first `end` characters of the trajectory's text are complete. Turns
    lie a line break apart there."""
    ids = row.ids[row.prompt_len :]
    if row.mask is None:
        return text.token_at(ids.tolist(), end)
    before = 0
    for turn in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(row.mask)) + 1):
        if not row.mask[turn[0]]:
            continue
        said = ids[turn].tolist()
        size = len(text.decode(said))
        if end <= size:
            return before + text.token_at(said, end)
        before, end = before + len(said), end - size - 1
    return before - 1


def free_address() -> tuple[str, int]:
    """An address and free port of this node."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return ray.util.get_node_ip_address(), listener.getsockname()[1]


def fetch_rows(wanted: list[int], refs: list[RowRef], deadline_s: float) -> dict[int, Row]:
    """Fetches rows by index; each stored list is fetched once."""
    places: dict[Any, list[int]] = {}
    for index in wanted:
        places.setdefault(refs[index].ref, []).append(index)
    stored = fetch(list(places), deadline_s, "rows of the batch")
    rows = {}
    for held, indices in zip(stored, places.values(), strict=True):
        for index in indices:
            rows[index] = held[refs[index].index]
    return rows
