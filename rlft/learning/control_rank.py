"""The learner actor of policies of environments: one data-parallel rank."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from rlft import registry
from rlft.config import Config
from rlft.learning.control_learner import ControlLearner
from rlft.learning.fit import FitReport
from rlft.learning.rank import LearnerRank, fetch_rows
from rlft.learning.strip_fit import StripJob, fit_strips
from rlft.learning.visits import Visits
from rlft.policy.actor_critic import load_policy
from rlft.sampling.vector import canary_answer, canary_of
from rlft.types import RowRef

_VISITS = "visits.pkl"
_CARRIED = "carried_{}.pt"


class ControlRank(LearnerRank):
    """As `LearnerRank`, with a policy that sees observations in place of one that reads tokens."""

    def __init__(self, name: str, cfg: Config, rank: int, folder: Path) -> None:
        super().__init__(name, cfg, rank, folder, frozenset())

    def _build(self) -> list[str]:
        one = registry.build("env", self._cfg.env).make()
        learner = ControlLearner(self._cfg, load_policy(self._folder, one))
        self._canary = canary_of(one.observation_space)
        one.close()
        self._learner: Any = learner
        self._visits = Visits()
        return learner.notes

    def fit(self, job: StripJob, refs: list[RowRef]) -> FitReport:  # type: ignore[override]
        """Takes the optimizer steps of `job` on the strips at `refs`. A collective."""
        held = fetch_rows(list(range(len(refs))), refs, self._cfg.deadlines.learn)
        strips: Any = [held[i] for i in range(len(refs))]
        return fit_strips(self._learner, job, self._rank, strips, self._visits, self._note)

    def canary(self, ids: list[int]) -> np.ndarray:
        """What the policy says of the canary observations. ids: not read. A collective."""
        return canary_answer(self._learner.policy, self._canary, self._learner.device)

    def save(self, folder: Path) -> None:
        """Writes this rank's state, and on rank 0 the policy's folder. A collective."""
        from safetensors.torch import save_file

        self._learner.save(folder / "learner_state")
        if self._learner.carried:
            torch.save(self._learner.carried, folder / _CARRIED.format(self._rank))
        if self._rank == 0 and self._visits.counts:
            (folder / _VISITS).write_bytes(pickle.dumps(self._visits.counts))
        tensors = {name: t.contiguous() for name, t in self._learner.full_tensors()}
        if self._rank == 0:
            (folder / "model").mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "model" / "model.safetensors")
            shutil.copyfile(self._folder / "policy.json", folder / "model" / "policy.json")

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. A collective."""
        self._learner.load(folder / "learner_state")
        carried = folder / _CARRIED.format(self._rank)
        if carried.is_file():
            self._learner.carried = torch.load(carried, self._learner.device)
        if (folder / _VISITS).is_file():
            self._visits.counts = pickle.loads((folder / _VISITS).read_bytes())

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int]:
        """(minibatches done, all) of the fit under way; answered on a thread of its own."""
        return self._progress
