"""Replays the learning part of one recorded step, alone: no engine, no rewards.

The algorithm's `learn` runs again on the bundle's groups and weights. Its code and its configuration are
those of now, so that a changed loss shows its changed numbers; unchanged, on a CPU, the numbers are the
recorded ones bit for bit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlft import registry
from rlft.algo import Algo
from rlft.cluster.placement import make_plan
from rlft.cluster.session import name_accelerator, ray_session
from rlft.cluster.start_fleet import start_fleet
from rlft.cluster.waits import Waits
from rlft.config import Config, Rewards, load_config
from rlft.credit.decision import NOTHING, ByToken
from rlft.credit.steps import StepAdvantages
from rlft.errors import CheckpointError, ConfigError
from rlft.filters import members_of
from rlft.learning.fit import FitJob, FitReport
from rlft.learning.job import fit_job
from rlft.losses.aggregate import Aggregation
from rlft.record.bundle import Bundle, read_bundle
from rlft.retention.term import Place, prepared
from rlft.seeding import Key
from rlft.types import Group, Row, RowRef, Task, WeightUpdate

Fit = Callable[[FitJob, list[Row]], FitReport]

_FIXED = ("model.dtype", "model.lora", "learner.num", "learner.zero_stage")
"""What the recorded weights and optimizer state depend on."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A number of the step: as recorded and as replayed, None where it was not there."""

    name: str
    recorded: float | str | None
    replayed: float | str | None

    @property
    def same(self) -> bool:
        return self.recorded == self.replayed


@dataclass(slots=True)
class ReplayRun:
    """What `learn` is given in place of a run: the same facts, `fit` and `note`. Nothing is held out: a
    bundle has only what was learnt from."""

    cfg: Config
    algo: Algo
    folder: Path
    step: int
    version: int
    state: Any
    key: Key
    _fit: Fit
    _rows: list[Row]
    numbers: dict[str, Any] = field(default_factory=dict)
    held_out: tuple[Task, ...] = ()
    taken: int = 0

    def fit(
        self,
        groups: Sequence[Group],
        adv: Sequence[float] | torch.Tensor | StepAdvantages | None,
        *,
        aggregate: Aggregation = "token",
        epochs: int = 1,
        minibatches: int = 1,
        by_token: ByToken = NOTHING,
        together: bool = False,
        packed: bool = False,
    ) -> WeightUpdate | None:
        """See `Run.fit`."""
        members, unit = members_of(groups)
        if not members:
            return None
        keys: dict[str, Any] = {
            "aggregate": aggregate,
            "epochs": epochs,
            "minibatches": minibatches,
            "by_token": by_token,
            "unit": unit if together else None,
            "packed": packed,
            "taken": self.taken,
        }
        job = fit_job(self.cfg, self.algo, self.step, members, adv, self.state, **keys)
        report = self._fit(job, [self._rows[m.row.index] for m in members])
        self.state = self.algo.next_state(self.state, report.metrics)
        self.taken += 0 if job.critic_only else len(job.updates) - report.skipped
        self.numbers |= {**report.metrics, "rows": len(members)}
        if job.critic_only or report.skipped == len(job.updates):
            return None
        return WeightUpdate(self.version + 1, self.version, "full", ())

    def note(self, numbers: Mapping[str, float]) -> None:
        """See `Run.note`."""
        self.numbers |= numbers


def replay(folder: Path, overrides: Iterable[str] = ()) -> list[Compared]:
    """Replays the bundle in `folder` with `key=value` overrides; one row a number, the weights' hash
    last. Raises CheckpointError or ConfigError."""
    bundle = read_bundle(folder)
    recorded_cfg = load_config(folder / "config.yaml")
    cfg = load_config(folder / "config.yaml", overrides)
    _refuse_other_learner(recorded_cfg, cfg)
    algo = registry.build("algo", cfg.algo)
    start = _start(bundle, cfg, algo)
    if cfg.retention:
        env, run_folder = registry.build("env", cfg.env), folder.resolve().parents[1]
        cfg = prepared(cfg, Place(cfg, start, run_folder, env, acts=False))
    learner = _actors if cfg.learner.num > 1 else _here
    with learner(cfg, bundle, start, algo) as (fit, digest):
        run = ReplayRun(
            cfg=cfg,
            algo=algo,
            folder=folder,
            step=bundle.step - 1,
            version=bundle.version,
            state=bundle.state,
            key=Key(cfg.seed),
            _fit=fit,
            _rows=bundle.rows,
            taken=bundle.taken,
        )
        algo.learn(run, bundle.groups)
        return _compared(bundle, run.numbers, digest())


def table(rows: Sequence[Compared]) -> Iterator[str]:
    """Lines for a person: each number as recorded, as replayed, and the difference."""
    yield f"{'':32}{'recorded':>18}{'replayed':>18}{'difference':>14}"
    for row in rows:
        both = (row.recorded, row.replayed)
        gap = "same" if row.same else "other"
        if not row.same and all(isinstance(v, int | float) for v in both):
            gap = f"{float(row.replayed or 0) - float(row.recorded or 0):+.3g}"
        yield f"{row.name:32}{_shown(row.recorded):>18}{_shown(row.replayed):>18}{gap:>14}"
    differ = sum(not row.same for row in rows)
    yield (
        f"{differ} of {len(rows)} numbers differ"
        if differ
        else f"all {len(rows)} numbers are the same, bit for bit"
    )


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.10g}"


def _compared(bundle: Bundle, numbers: Mapping[str, Any], digest: str) -> list[Compared]:
    # What collecting recorded (rewards, lengths) is not replayed, and not compared.
    learnt = [k for k in bundle.recorded if k in numbers or k.startswith("loss/")]
    names = [*learnt, *(k for k in numbers if k not in bundle.recorded)]
    rows = [Compared(n, bundle.recorded.get(n), _plain(numbers.get(n))) for n in names]
    return [*rows, Compared("weights after the step", bundle.digest, digest)]


def _plain(value: Any) -> Any:
    """A number as `metrics.jsonl` has it: not finite is null."""
    return None if isinstance(value, float) and value - value != 0 else value


def _start(bundle: Bundle, cfg: Config, algo: Algo) -> Path:
    if (bundle.start / "config.json").is_file():
        return bundle.start
    if cfg.retention or ("ref_logp" in algo.needs and cfg.model.lora is None):
        raise CheckpointError(
            f"a loss compares with the start model, and {bundle.start} is no longer there; put it "
            f"back, or replay without that loss (for GRPO: algo.kl_coef=0; retention=[])"
        )
    return bundle.folder / "model"


def _refuse_other_learner(recorded: Config, now: Config) -> None:
    for key in _FIXED:
        section, name = key.split(".")
        was, is_ = (getattr(getattr(cfg, section), name) for cfg in (recorded, now))
        if was != is_:
            raise ConfigError(
                f"a bundle of {key}={was} cannot be replayed with {is_}: its weights and optimizer "
                f"state belong to that"
            )


@contextmanager
def _here(
    cfg: Config, bundle: Bundle, start: Path, algo: Algo
) -> Iterator[tuple[Fit, Callable[[], str]]]:
    """The only rank in this process: a debugger reaches the loss."""
    from transformers.utils import logging as transformers_logging

    from rlft.learning.rank import LearnerRank

    name_accelerator(cfg)
    torch.set_num_threads(bundle.threads)  # how sums are split over threads shows in the last bit
    transformers_logging.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints what it builds
        rank = LearnerRank("replay", cfg, 0, start, algo.needs, algo.critic)
        rank.connect(("127.0.0.1", 0))  # the store takes a free port: nobody else has to find it
    # The process group stays: DeepSpeed keeps references to it, and a second replay joins it again.
    rank.load(bundle.folder)
    yield (
        lambda job, rows: rank.fit_rows(job, dict(enumerate(rows))),
        lambda: rank.digest()["weights"],
    )


@contextmanager
def _actors(
    cfg: Config, bundle: Bundle, start: Path, algo: Algo
) -> Iterator[tuple[Fit, Callable[[], str]]]:
    """As many ranks as there were, as actors."""
    import ray

    alone = cfg.model_copy(
        update={"sampler": cfg.sampler.model_copy(update={"num": 0}), "rewards": Rewards()}
    )
    with ray_session(alone, lambda line: None) as resources:
        waits = Waits(print, bundle.folder / "stacks", cfg.deadlines.notice)
        plan = make_plan(alone, resources)
        silent = lambda line: None  # noqa: E731
        fleet = start_fleet(alone, plan, waits, start, algo.needs, silent, algo.critic)

        def every(method: str, *args: Any) -> list[Any]:
            limit = cfg.deadlines.learn
            return fleet.all(fleet.learners, method, *args, what="replay", deadline_s=limit)

        def fit(job: FitJob, rows: list[Row]) -> FitReport:
            stored = ray.put(rows)
            return every("fit", job, [RowRef(stored, i) for i in range(len(rows))])[0]

        try:
            every("load", bundle.folder)
            yield fit, lambda: every("digest")[0]["weights"]
        finally:
            fleet.close()
