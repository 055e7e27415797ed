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
from rlft.learning.retained import retained_acting
from rlft.learning.strip_fit import fit_strips
from rlft.learning.strip_job import StripJob
from rlft.learning.visits import Visits
from rlft.policy.actor_critic import as_tensors, load_policy
from rlft.retention.fisher import reads
from rlft.sampling.vector import canary_answer, canary_of
from rlft.types import RowRef

_VISITS = "visits.pkl"
_CARRIED = "carried_{}.pt"


class ControlRank(LearnerRank):
    """As `LearnerRank`, with a policy that sees observations in place of one that reads tokens."""

    def __init__(self, name: str, cfg: Config, rank: int, folder: Path) -> None:
        super().__init__(name, cfg, rank, folder, frozenset())

    def _build(self) -> list[str]:
        env = registry.build("env", self._cfg.env)
        one = env.make()
        policy = load_policy(self._folder, one)
        self._canary = canary_of(one.observation_space)
        alone = critic_only(policy, self._canary)
        learner = ControlLearner(self._cfg, policy)
        self._retained = retained_acting(self._cfg, learner, env, one, alone)
        one.close()
        self._learner: Any = learner
        self._visits = Visits()
        return learner.notes

    def fit(self, job: StripJob, refs: list[RowRef]) -> FitReport:  # type: ignore[override]
        """Takes the optimizer steps of `job` on the strips at `refs`. A collective."""
        held = fetch_rows(list(range(len(refs))), refs, self._cfg.deadlines.learn)
        strips: Any = [held[i] for i in range(len(refs))]
        return fit_strips(
            self._learner, job, self._rank, strips, self._visits, self._note, self._retained
        )

    def canary(self, ids: list[int]) -> np.ndarray:
        """What the policy says of the canary observations. ids: not read. A collective."""
        return canary_answer(self._learner.policy, self._canary, self._learner.device)

    def save(self, folder: Path) -> None:
        """Writes this rank's state, and on rank 0 the policy's folder. A collective."""
        self._learner.save(folder / "learner_state")
        if self._learner.carried:
            torch.save(self._learner.carried, folder / _CARRIED.format(self._rank))
        if self._rank == 0:
            self._retained.save(folder)
        if self._rank == 0 and self._visits.counts:
            (folder / _VISITS).write_bytes(pickle.dumps(self._visits.counts))
        self.write_model(folder / "model")

    def write_model(self, folder: Path) -> None:
        """Writes the policy's folder, on rank 0. A collective."""
        from safetensors.torch import save_file

        tensors = {name: t.contiguous() for name, t in self._learner.full_tensors()}
        if self._rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "model.safetensors")
            shutil.copyfile(self._folder / "policy.json", folder / "policy.json")

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. A collective."""
        self._learner.load(folder / "learner_state")
        carried = folder / _CARRIED.format(self._rank)
        if carried.is_file():
            self._learner.carried = torch.load(carried, self._learner.device)
        self._retained.load(folder)
        if (folder / _VISITS).is_file():
            self._visits.counts = pickle.loads((folder / _VISITS).read_bytes())

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int]:
        """(minibatches done, all) of the fit under way; answered on a thread of its own."""
        return self._progress


def critic_only(policy: Any, canary: dict[str, np.ndarray]) -> frozenset[str]:
    """Names of the trained weights that the policy's distribution does not depend on: never regularised."""
    named = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    obs = as_tensors({name: x[:1] for name, x in canary.items()}, torch.device("cpu"))
    read = {name for name, _ in reads(policy, obs, named)}
    return frozenset(name for name, _ in named if name not in read)
