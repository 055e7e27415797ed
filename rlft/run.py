"""A run: the verbs that algorithms compose, and the only loop."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.algo import Algo
from rlft.batch import plan
from rlft.check import (
    check_installation,
    check_plugins,
    check_prompts,
    check_tasks,
    with_plugin_defaults,
)
from rlft.cluster.fleet import Fleet, start_fleet
from rlft.cluster.placement import make_plan
from rlft.cluster.session import name_accelerator, private_resources, ray_session
from rlft.cluster.waits import Waits
from rlft.collect import Collector
from rlft.config import Config, load_config
from rlft.errors import ConfigError, NonFinite, RewardFailed
from rlft.filters import drop_errors, members_of
from rlft.learning.fit import FitJob, FitReport
from rlft.losses.aggregate import Aggregation
from rlft.policy.start import start_folder
from rlft.policy.text import Text
from rlft.prefetch import prefetch
from rlft.record.checkpoint import (
    identity,
    newest_checkpoint,
    resumable,
    write_checkpoint,
)
from rlft.record.console import Console
from rlft.record.folder import open_folder
from rlft.record.metrics import JsonLines
from rlft.record.summary import collected, reward_summary, sample_rows, success
from rlft.schedule import value_at
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Group, Task, Ticket, Trajectory, WeightUpdate
from rlft.weights.proof import canary_ids
from rlft.weights.publisher import Publisher

_SKIPS_BEFORE_STOP = 3


class Run:
    """What an algorithm is given. Verbs: `rollout`, `score`, `demos`, `fit`; the loop's own are
    `publish`, `record`, `evaluate`, `save`, `restore_latest`."""

    def __init__(
        self,
        cfg: Config,
        algo: Algo,
        tasks: TaskStream,
        held_out: Sequence[Task],
        folder: Path,
        start: Path,
        fleet: Fleet,
        console: Console,
    ) -> None:
        self.cfg, self.algo, self.folder = cfg, algo, folder
        self.step, self.version = 0, -1
        self.state = algo.init_state()
        self.key = Key(cfg.seed)
        self._fleet, self._console = fleet, console
        self._text = Text(start, cfg.sampler.stop)
        self._tasks, self._held_out = tasks, held_out
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._evals = JsonLines(folder / "eval.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._row: dict[str, Any] = {}
        self._skips, self._scored = 0, list[Group]()
        self._collector = Collector(cfg, fleet, self._text)
        first = self._text.prompt_ids(self._tasks.ticket(0).tasks[0].prompt)
        size = json.loads((start / "config.json").read_text())["vocab_size"]
        self._publisher = Publisher(cfg, fleet, canary_ids(first, size, self.key))

    # -- verbs of algorithms ---------------------------------------------------------------------

    async def rollout(
        self,
        tasks: Sequence[Task],
        *,
        n: int,
        key: Key,
        greedy: bool = False,
        max_tokens: int | None = None,
    ) -> list[Group]:
        """Samples `n` completions of each task; group `i` belongs to `tasks[i]`, unscored.

        The seed of a completion depends on `key`, the task's place and the member alone, so it does
        not matter which engine drew it.
        """
        with self._timed("rollout"):
            return self._collector.sample(tasks, n, key, greedy, max_tokens)

    async def score(self, groups: Sequence[Group]) -> list[Group]:
        """Scores every member. A member whose reward failed is left out of its group, and counted;
        it is never a 0. Raises RewardFailed when too many failed."""
        groups = self._outcomes(groups)
        self._scored += groups  # an algorithm may score several times in a step
        self._row.update(collected(self._scored))
        self._save_samples(groups, self.step + 1, "train")
        self._stop_if_rewards_fail(groups)
        return drop_errors(groups)

    async def demos(self, tasks: Sequence[Task]) -> list[Group]:
        """Each task with its reference responses as members of origin `demo`, unscored."""
        return self._collector.demos(tasks, self.version)

    def fit(
        self,
        groups: Sequence[Group],
        adv: Sequence[float] | torch.Tensor | None,
        *,
        aggregate: Aggregation = "token",
        epochs: int = 1,
        minibatches: int = 1,
    ) -> WeightUpdate | None:
        """Takes `epochs x minibatches` optimizer steps on every member of `groups`.

        adv: one number per member in order, or None (all 0, for losses that do not use it). Returns
        the update to publish, or None if there were no rows or every step was skipped.
        """
        members, _ = members_of(groups)
        if not members:
            return None
        adv_B = np.zeros(len(members), np.float32) if adv is None else np.asarray(adv, np.float32)
        if adv_B.shape != (len(members),):
            raise ValueError(
                f"adv has shape {adv_B.shape}, expected one number per member: {len(members)}"
            )
        job = self._job(members, adv_B, aggregate, epochs, min(minibatches, len(members)))
        self._console.phase("learn", self.step + 1)
        with self._timed("learn"), self._fleet.samplers_asleep():
            reports = self._fleet.all(
                self._fleet.learners,
                "fit",
                job,
                [m.row for m in members],
                what="learn",
                deadline_s=self.cfg.deadlines.learn,
            )
        self.state = self.algo.next_state(self.state, reports[0].metrics)
        self._row.update(reports[0].metrics)
        self._row["rows"] = len(members)
        self._stop_if_nonfinite(reports, members, len(job.updates))
        if reports[0].skipped == len(job.updates):
            return None
        return WeightUpdate(self.version + 1, self.version, "full", ())

    # -- verbs of the loop -----------------------------------------------------------------------

    def publish(self, update: WeightUpdate | None) -> None:
        """Moves the samplers to the learner's weights, and proves that they got and use them."""
        if update is None:
            return
        if self._fleet.samplers:
            self._console.phase("publish", self.step + 1)
            with self._timed("publish"):
                self._row["publish/canary_gap"] = self._publisher.send(update.version)
        self.version = update.version

    def record(self, groups: Sequence[Group], seconds: float) -> None:
        """Appends the row of the step that just ended, and some of its samples."""
        members, _ = members_of(groups)
        row: dict[str, Any] = {"step": self.step, "version": self.version}
        row["tokens/prompt"] = row["tokens/completion"] = 0
        for phase in ("step", "rollout", "reward", "learn", "publish"):
            row[f"time/{phase}_s"] = 0.0
        row["time/step_s"] = seconds
        if "tokens/completion" not in self._row:
            row["tokens/prompt"] = sum(m.prompt_len for m in members)
            row["tokens/completion"] = sum(m.num_tokens for m in members)
        row.update(self._row)
        self._row, self._scored = {}, []
        self._metrics.append(row)
        self._console.step(row)

    def evaluate(self) -> dict[str, float]:
        """Greedy success on held-out tasks; appended to `eval.jsonl`."""
        cfg = self.cfg.eval
        tasks = [self._held_out[i] for i in range(min(cfg.max_tasks, len(self._held_out)))]
        self._console.phase("evaluate", self.step)
        training_row, self._row = self._row, {}
        began = time.monotonic()
        with self._timed("rollout"):
            completions = self._collector.sample(
                tasks, 1, self.key.child("eval"), True, cfg.max_tokens
            )
        groups = self._outcomes(completions)
        self._row = training_row
        members, _ = members_of(groups)
        result = {f"eval/{k}": v for k, v in reward_summary(members).items()}
        result["eval/tasks"] = float(len(tasks))
        result["eval/tokens"] = sum(m.num_tokens for m in members) / max(1, len(members))
        result["time/eval_s"] = time.monotonic() - began
        self._evals.append({"step": self.step, "version": self.version, **result})
        self._save_samples(groups, self.step, "eval")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in success(result).items())
        self._console.say(
            f"eval after step {self.step}: {shown}  ({len(tasks)} held-out tasks, greedy, "
            f"{result['time/eval_s']:.1f} s)"
        )
        return result

    def first_evaluation(self) -> dict[str, float]:
        """What `evaluate` said before step 1, from `eval.jsonl`; empty if it was not asked."""
        rows = [row for row in self._evals.rows() if row["step"] == 0]
        return {k: v for k, v in rows[0].items() if k.startswith("eval/")} if rows else {}

    def save(self) -> Path:
        """Writes an atomic checkpoint: weights, optimizer, random state, algorithm state, position."""
        self._console.phase("save", self.step)

        def write(folder: Path) -> None:
            self._fleet.all(
                self._fleet.learners,
                "save",
                folder,
                what="save",
                deadline_s=self.cfg.deadlines.save,
            )

        state = {"version": self.version, "identity": identity(self.cfg)}
        return write_checkpoint(
            self.folder / "checkpoints", self.step, state, self.state, write, self.cfg.save.keep
        )

    def restore_latest(self) -> None:
        """Continues from the newest checkpoint of the run folder, bit for bit on CPU.

        Raises CheckpointError: none there, corrupted, of another run, or nothing left to do.
        """
        newest, state, self.state = resumable(self.folder / "checkpoints", self.cfg)
        self._fleet.all(
            self._fleet.learners, "load", newest, what="load", deadline_s=self.cfg.deadlines.save
        )
        self.step, self.version = state["step"], state["version"]
        for lines in (self._metrics, self._evals, self._samples):
            lines.forget_after(self.step)
        self._console.say(f"resumed from {newest}")

    def tickets(self) -> Iterator[Ticket]:
        """The tickets not yet learnt from."""
        while self.step < self.cfg.steps:
            ticket = self._tasks.ticket(self.step)
            self._fleet.waits.stage = f"step {self.step + 1}"
            self._console.phase("collect", self.step + 1)
            yield ticket

    def due(self, what: Any) -> bool:
        """Whether the section `what` (with `every` and `at_end`) asks for its turn now."""
        last = self.step == self.cfg.steps
        return bool(what.at_end) if last else bool(what.every and self.step % what.every == 0)

    # -- inside ----------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        name = f"time/{phase}_s"
        self._row[name] = self._row.get(name, 0.0) + time.monotonic() - began

    def _job(
        self,
        members: list[Trajectory],
        adv_B: np.ndarray,
        aggregate: Aggregation,
        epochs: int,
        minibatches: int,
    ) -> FitJob:
        terms = self.algo.terms
        updates = plan(
            [m.prompt_len + m.num_tokens for m in members],
            world=self.cfg.learner.num,
            budget=self.cfg.learner.token_budget,
            minibatches=minibatches,
            epochs=epochs,
            key=self.key.child("fit", self.step),
        )
        return FitJob(
            updates=updates,
            adv=adv_B,
            on_policy=np.array([m.origin == "policy" for m in members]),
            terms=terms,
            coef=tuple(value_at(t.coef, self.step, self.state) for t in terms),
            aggregate=aggregate,
            max_tokens=self.cfg.sampler.max_tokens,
            lr=value_at(self.cfg.learner.lr, self.step),
            temperature=self.cfg.sampler.temperature if self.algo.samples else 1.0,
            first_epoch=minibatches,
        )

    def _outcomes(self, groups: Sequence[Group]) -> list[Group]:
        self._console.phase("score", self.step + 1)
        with self._timed("reward"):
            return self._collector.outcomes(groups)

    def _stop_if_rewards_fail(self, groups: Sequence[Group]) -> None:
        members, _ = members_of(groups)
        failed = [m.outcome for m in members if m.outcome and m.outcome.kind == "error"]
        if not failed:
            return
        message = (
            f"step {self.step + 1}: {len(failed)} of {len(members)} rewards failed; the first:\n"
            f"{failed[0].reason}"
        )
        limit = self.cfg.rewards.max_error_share
        if len(failed) > limit * len(members):
            raise RewardFailed(
                f"{message}\nMore than rewards.max_error_share={limit:g} of the step: stopping. A failed "
                f"reward is never counted as 0."
            )
        self._console.say(message)

    def _save_samples(self, groups: Sequence[Group], step: int, kind: str) -> None:
        for row in sample_rows(groups, step, kind):
            self._samples.append(row)

    def _stop_if_nonfinite(
        self, reports: Sequence[FitReport], members: Sequence[Trajectory], updates: int
    ) -> None:
        skipped = reports[0].skipped
        if not skipped:
            self._skips = 0
            return
        self._skips = self._skips + skipped if skipped == updates else skipped
        guilty = sorted({row for report in reports for row in report.nonfinite_rows})
        path = self.folder / f"nonfinite_step_{self.step + 1}.jsonl"
        lines = JsonLines(path)
        for row in guilty:
            m = members[row]
            lines.append(
                {"step": self.step + 1, "id": m.id, "task": m.task_id, "completion": m.text}
            )
        where = f" {len(guilty)} rows with a non-finite loss are in {path}." if guilty else ""
        self._console.say(
            f"step {self.step + 1}: {skipped} of {updates} updates were skipped: the gradient was not "
            f"finite.{where}"
        )
        if self._skips >= _SKIPS_BEFORE_STOP:
            raise NonFinite(
                f"step {self.step + 1}: the gradient was not finite for {self._skips} updates in a row."
                f"{where} Lower learner.lr, or look at the rewards and losses of those rows."
            )


def main(
    cfg: Config, folder: Path, *, resume: bool = False, console: Console | None = None
) -> dict[str, float]:
    """Runs `cfg` in `folder`: the only loop. Returns the last evaluation, with the first one under
    `before/` keys."""
    console = console or Console(cfg.steps)
    name_accelerator(cfg)
    # Everything that can be known to be wrong is, before anything is started or written.
    algo, env = check_plugins(cfg)
    check_installation(cfg)
    tasks, held_out = check_tasks(cfg, env)
    if cfg.warm_start:
        check_plugins(load_config(cfg.warm_start))
    # Without metrics, what was interrupted was the warm start: this part begins now.
    continues = resume and not (cfg.warm_start and not (folder / "metrics.jsonl").exists())
    if continues:
        resumable(folder / "checkpoints", cfg)
    if (here := private_resources(cfg)) is not None:
        make_plan(cfg, here)
    open_folder(with_plugin_defaults(cfg, algo, env), folder, resume)
    if cfg.warm_start is None:
        start = start_folder(cfg, folder)
        check_prompts(cfg, algo, start, tasks, held_out)
    with ray_session(cfg, console.say) as resources:
        placement = make_plan(cfg, resources)
        if cfg.warm_start:
            cfg = _after_warm_start(cfg, folder, resume, console.say)
            start = start_folder(cfg, folder)
            check_prompts(cfg, algo, start, tasks, held_out)
        for line in placement.lines:
            console.say(line)
        waits = Waits(console.say, folder / "stacks", cfg.deadlines.notice)
        needs = frozenset().union(*(term.needs for term in algo.terms))
        began = time.monotonic()
        fleet = start_fleet(cfg, placement, waits, start, needs, console.say)
        console.say(
            f"started {_census(fleet)} in {time.monotonic() - began:.1f} s; run folder {folder}"
        )
        try:
            run = Run(cfg, algo, tasks, held_out, folder, start, fleet, console)
            if continues:
                run.restore_latest()
            with console.live():
                return _loop(run, continues)
        finally:
            fleet.close()


def _loop(run: Run, resumed: bool) -> dict[str, float]:
    cfg = run.cfg
    run.publish(WeightUpdate(max(run.version, 0), run.version, "full", ()))
    first = run.first_evaluation() if resumed else {}
    if cfg.eval.at_start and not resumed:
        first = run.evaluate()
    last = first
    began = time.monotonic()
    for _ticket, groups in prefetch(run.tickets(), lambda ticket: run.algo.collect(run, ticket)):
        update = run.algo.learn(run, groups)
        run.publish(update)
        run.step += 1
        run.record(groups, time.monotonic() - began)
        if run.due(cfg.eval):
            last = run.evaluate()
        if run.due(cfg.save):
            run.save()
        began = time.monotonic()
    result = {**last, **{f"before/{k}": v for k, v in first.items()}}
    (run.folder / "result.json").write_text(
        json.dumps({"step": run.step, **result}, indent=1) + "\n"
    )
    return result


def _after_warm_start(
    cfg: Config, folder: Path, resume: bool, say: Callable[[str], None]
) -> Config:
    """Runs the warm start, unless it was finished before, and starts from its model."""
    assert cfg.warm_start is not None
    warm = load_config(cfg.warm_start)
    below = folder / "warm_start"
    if not (below / "result.json").is_file():
        unfinished = resume and newest_checkpoint(below / "checkpoints") is not None
        if resume and not unfinished:
            shutil.rmtree(below, ignore_errors=True)  # it was interrupted before it saved anything
        say(f"warm start: {warm.name}, {warm.steps} steps ({cfg.warm_start})")
        main(warm.model_copy(update={"seed": cfg.seed}), below, resume=unfinished)
        say(f"warm start done; now {cfg.name}, {cfg.steps} steps")
    newest = newest_checkpoint(below / "checkpoints")
    if newest is None:
        raise ConfigError(
            f"{cfg.warm_start}: the warm start saved no model; set save.at_end=true there"
        )
    model = cfg.model.model_copy(update={"path": str(newest / "model")})
    return cfg.model_copy(update={"model": model})


def _census(fleet: Fleet) -> str:
    counts = {"sampler": fleet.samplers, "learner": fleet.learners, "reward worker": fleet.rewards}
    return ", ".join(f"{len(owners)} {role}" for role, owners in counts.items() if owners)
