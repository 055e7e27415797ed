"""Any task of EleutherAI's lm-evaluation-harness by its name, if that package is there."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlft.config import Config, Positive
from rlft.errors import ConfigError, did_you_mean
from rlft.probes.probe import ForgettingProbe, Subject


@dataclass(frozen=True)
class LMEval(ForgettingProbe):
    """tasks: names such as `arc_easy`; include: a folder with tasks of your own, as the harness describes
    them; limit: examples of each, null: all; batch_size: of the harness."""

    acting: ClassVar[bool] = False

    tasks: list[str]
    include: str | None = None
    limit: Positive | None = None
    batch_size: Positive = 8
    called: str = "lm_eval"

    def check(self, cfg: Config, env: Any) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError(
                "probes.fns: lm_eval needs the package lm-eval, which is not installed: pip install "
                "lm-eval; or use text_forgetting, which needs nothing"
            )
        if self.include is not None and not Path(self.include).expanduser().is_dir():
            raise ConfigError(f"probes.fns: lm_eval: include={self.include!r} is not a folder")
        known = self._manager().all_tasks
        for task in self.tasks:
            if task not in known:
                raise ConfigError(
                    f"probes.fns: lm_eval has no task {task!r}.{did_you_mean(task, known)}"
                )

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        harness: Any = importlib.import_module("lm_eval")
        found = harness.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(subject.model), "dtype": subject.cfg.model.dtype},
            tasks=list(self.tasks),
            task_manager=self._manager(),
            device=subject.device,
            limit=self.limit,
            batch_size=self.batch_size,
            random_seed=subject.cfg.seed,
        )
        return {
            f"{task}/{_metric(name)}": float(value)
            for task, numbers in found["results"].items()
            for name, value in numbers.items()
            if isinstance(value, int | float) and "_stderr" not in name and "," in name
        }

    def _manager(self) -> Any:
        tasks: Any = importlib.import_module("lm_eval.tasks")
        where = None if self.include is None else str(Path(self.include).expanduser())
        return tasks.TaskManager(include_path=where)


def _metric(name: str) -> str:
    """The harness's `acc,none` as `acc`, and `exact_match,strict-match` as `exact_match/strict-match`: the
    answers of one task may be read by several filters."""
    metric, _, read_by = name.partition(",")
    return metric if read_by == "none" else f"{metric}/{read_by}"
