"""A run: the verbs that algorithms compose, and the only loop."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from rlft import registry
from rlft.algo import Algo
from rlft.batch import plan
from rlft.cluster.fleet import Fleet, start_fleet
from rlft.cluster.placement import make_plan
from rlft.cluster.session import ray_session
from rlft.cluster.waits import Waits
from rlft.config import Config, dump_config, load_config
from rlft.errors import CheckpointError, ConfigError, NonFinite, RewardFailed
from rlft.filters import drop_errors, members_of
from rlft.learning.fit import FitJob, FitReport
from rlft.policy.start import start_folder
from rlft.policy.text import Text
from rlft.prefetch import prefetch
from rlft.record.checkpoint import newest_checkpoint, read_checkpoint, write_checkpoint
from rlft.record.console import Console
from rlft.record.environment import environment
from rlft.record.metrics import JsonLines
from rlft.schedule import value_at
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import (
    Group,
    Outcome,
    Row,
    RowRef,
    Sampling,
    Task,
    Ticket,
    Trajectory,
    WeightUpdate,
)
from rlft.weights.proof import CanaryWatch, canary_ids

_SAMPLES_A_STEP = 16
_SKIPS_BEFORE_STOP = 3


class Run:
    """What an algorithm is given. Verbs: `rollout`, `score`, `demos`, `fit`; the loop's own are
    `publish`, `record`, `evaluate`, `save`, `restore_latest`."""

    def __init__(
        self, cfg: Config, algo: Algo, env: Any, folder: Path, start: Path, fleet: Fleet, console: Console
    ) -> None:
        self.cfg, self.algo, self.folder = cfg, algo, folder
        self.step, self.version = 0, -1
        self.state = algo.init_state()
        self.key = Key(cfg.seed)
        self._fleet, self._console = fleet, console
        self._start = start
        self._text = Text(start, cfg.sampler.stop)
        self._held_out = env.held_out()
        self._tasks = TaskStream(env.train(), cfg.tasks_per_step, self.key.child("tasks"))
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._row: dict[str, Any] = {}
        self._skips = 0
        self._canary: list[int] | None = None
        self._watch = CanaryWatch(cfg.model.dtype, cfg.publish.canary_tolerance)
        self._check_prompts()

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
        if not self._fleet.samplers:
            raise ConfigError("this algorithm samples, but sampler.num is 0; set it to at least 1")
        cfg = self.cfg.sampler
        sampling = Sampling(
            max_tokens=max_tokens or cfg.max_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            top_k=cfg.top_k,
            greedy=greedy,
            min_tokens=min(cfg.min_tokens, max_tokens or cfg.max_tokens),
            stop_ids=self._text.stop_ids,
        )
        prompts = []
        for place, task in enumerate(tasks):
            ids = self._text.fitting_prompt(task, sampling.max_tokens, self.cfg.model.max_length)
            prompts.append((ids, [key.child(place, j).seed(31) for j in range(n)]))
        shares = _shares(len(tasks), len(self._fleet.samplers))
        with self._timed("rollout"):
            calls, row_refs = [], []
            for sampler, share in zip(self._fleet.samplers, shares, strict=True):
                method = sampler.handle.generate.options(num_returns=2)
                heads, rows = method.remote([prompts[i] for i in share], sampling)
                calls.append((sampler, heads))
                row_refs.append(rows)
            answers = self._fleet.waits.get(calls, "rollout", self.cfg.deadlines.rollout)
        groups = []
        for share, (version, heads), rows in zip(shares, answers, row_refs, strict=True):
            for order, place in enumerate(share):
                task, ids = tasks[place], prompts[place][0]
                members = []
                for j in range(n):
                    text, num_tokens, truncated = heads[order * n + j]
                    members.append(
                        Trajectory(
                            id=f"{key.path[-1]}.{place}.{j}",
                            task_id=task.id,
                            origin="policy",
                            text=text,
                            prompt_len=len(ids),
                            num_tokens=num_tokens,
                            version=(version, version),
                            truncated=truncated,
                            row=RowRef(rows, order * n + j),
                        )
                    )
                groups.append(Group(task, tuple(members)))
        return groups

    async def score(self, groups: Sequence[Group]) -> list[Group]:
        """Scores every member. A member whose reward failed is left out of its group, and counted;
        it is never a 0. Raises RewardFailed when too many failed."""
        groups = await self._outcomes(groups)
        self._note_rewards(groups)
        return drop_errors(groups)

    async def demos(self, tasks: Sequence[Task]) -> list[Group]:
        """Each task with its reference responses as members of origin `demo`, unscored."""
        groups: list[Group] = []
        rows: list[Row] = []
        places: list[list[tuple[str, int, int]]] = []
        for task in tasks:
            prompt = self._text.fitting_prompt(task, 1, self.cfg.model.max_length)
            here = []
            for demo in task.demos:
                response = self._text.response_ids(demo)[: self.cfg.model.max_length - len(prompt)]
                here.append((demo, len(prompt), len(response)))
                nothing = np.full(len(response), np.nan, np.float32)
                rows.append(Row(np.array([*prompt, *response], np.int32), len(prompt), nothing))
            places.append(here)
        stored, index = ray.put(rows), 0
        for task, here in zip(tasks, places, strict=True):
            members = []
            for order, (demo, prompt_len, length) in enumerate(here):
                members.append(
                    Trajectory(
                        id=f"demo.{task.id}.{order}",
                        task_id=task.id,
                        origin="demo",
                        text=demo,
                        prompt_len=prompt_len,
                        num_tokens=length,
                        version=(self.version, self.version),
                        truncated=False,
                        row=RowRef(stored, index),
                    )
                )
                index += 1
            if members:
                groups.append(Group(task, tuple(members)))
        return groups

    def fit(
        self,
        groups: Sequence[Group],
        adv: Sequence[float] | torch.Tensor | None,
        *,
        aggregate: str = "token",
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
            raise ValueError(f"adv has shape {adv_B.shape}, expected one number per member: {len(members)}")
        job = self._job(members, adv_B, aggregate, epochs, min(minibatches, len(members)))
        refs = [m.row for m in members]
        self._console.phase("learn", self.step + 1)
        with self._timed("learn"):
            reports = self._fleet.all(
                self._fleet.learners,
                "fit",
                job,
                refs,
                what="learn",
                deadline_s=self.cfg.deadlines.learn,
            )
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
                self._send(update.version)
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
        self._row = {}
        self._metrics.append(row)
        self._console.step(row)

    def evaluate(self) -> dict[str, float]:
        """Greedy success on held-out tasks; appended to `metrics.jsonl` as a row with `eval/` keys."""
        cfg = self.cfg.eval
        tasks = [self._held_out[i] for i in range(min(cfg.max_tasks, len(self._held_out)))]
        self._console.phase("evaluate", self.step)
        training_row, self._row = self._row, {}
        began = time.monotonic()
        collected = _finish(
            self.rollout(tasks, n=1, key=self.key.child("eval"), greedy=True, max_tokens=cfg.max_tokens)
        )
        groups = _finish(self._outcomes(collected))
        self._row = training_row
        members, _ = members_of(groups)
        result = {f"eval/{k}": v for k, v in _reward_summary(members).items()}
        result["eval/tasks"] = float(len(tasks))
        result["eval/tokens"] = sum(m.num_tokens for m in members) / max(1, len(members))
        result["time/eval_s"] = time.monotonic() - began
        self._metrics.append({"step": self.step, "version": self.version, **result})
        self._save_samples(groups, "eval")
        shown = "  ".join(
            f"{k.removeprefix('eval/')} {v:.3f}" for k, v in result.items() if k.startswith("eval/reward")
        )
        self._console.say(
            f"eval after step {self.step}: {shown}  ({len(tasks)} held-out tasks, greedy, "
            f"{result['time/eval_s']:.1f} s)"
        )
        return result

    def save(self) -> Path:
        """Writes an atomic checkpoint: weights, optimizer, random state, algorithm state, position."""
        self._console.phase("save", self.step)

        def write(folder: Path) -> None:
            self._fleet.all(
                self._fleet.learners, "save", folder, what="save", deadline_s=self.cfg.deadlines.save
            )

        state = {"version": self.version, "identity": _identity(self.cfg)}
        return write_checkpoint(
            self.folder / "checkpoints", self.step, state, self.state, write, self.cfg.save.keep
        )

    def restore_latest(self) -> None:
        """Continues from the newest checkpoint of the run folder, bit for bit on CPU.

        Raises CheckpointError: none there, corrupted, of another run, or nothing left to do.
        """
        root = self.folder / "checkpoints"
        newest = newest_checkpoint(root)
        if newest is None:
            raise CheckpointError(f"nothing to resume: no checkpoint in {root}; run without --resume")
        state, self.state = read_checkpoint(newest)
        _refuse_foreign(newest, state["identity"], _identity(self.cfg))
        if state["step"] >= self.cfg.steps:
            raise CheckpointError(
                f"nothing to do: {newest} is at step {state['step']} of {self.cfg.steps}; raise steps= "
                f"to train further."
            )
        self._fleet.all(
            self._fleet.learners, "load", newest, what="load", deadline_s=self.cfg.deadlines.save
        )
        self.step, self.version = state["step"], state["version"]
        for lines in (self._metrics, self._samples):
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

    def _check_prompts(self) -> None:
        """Refuses prompts that cannot fit before anything is spent on them."""
        cfg = self.cfg
        needed = cfg.sampler.max_tokens if self.algo.samples else 1
        for index in range(min(cfg.eval.max_tasks, len(self._held_out))):
            self._text.fitting_prompt(self._held_out[index], needed, cfg.model.max_length)
        for index in range(min(cfg.steps, 64)):
            for task in self._tasks.ticket(index).tasks[:64]:
                self._text.fitting_prompt(task, needed, cfg.model.max_length)

    def _job(
        self, members: list[Trajectory], adv_B: np.ndarray, aggregate: str, epochs: int, minibatches: int
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
            coef=tuple(value_at(t.coef, self.step) for t in terms),
            aggregate=aggregate,
            max_tokens=self.cfg.sampler.max_tokens,
            lr=value_at(self.cfg.learner.lr, self.step),
            temperature=self.cfg.sampler.temperature if self.algo.samples else 1.0,
            first_epoch=minibatches,
        )

    def _send(self, version: int) -> None:
        fleet, limit = self._fleet, self.cfg.deadlines.publish
        sent = fleet.all(fleet.learners, "send", version, what="publish", deadline_s=limit)[0]
        fleet.all(fleet.samplers, "load", sent, sent.source, what="publish", deadline_s=limit)
        if self._canary is None:
            size = json.loads((self._start / "config.json").read_text())["vocab_size"]
            first = self._text.prompt_ids(self._tasks.ticket(0).tasks[0].prompt)
            self._canary = canary_ids(first, size, self.key)
        own = [(o, o.handle.canary.remote(self._canary)) for o in fleet.learners]
        theirs = [(o, o.handle.score.remote(self._canary)) for o in fleet.samplers]
        answers = fleet.waits.get([*own, *theirs], "canary", limit)
        engines = {o.name: a for (o, _), a in zip(theirs, answers[len(own) :], strict=True)}
        self._row["publish/canary_gap"] = self._watch.check(answers[0], engines, sent.manifest)

    async def _outcomes(self, groups: Sequence[Group]) -> list[Group]:
        """Groups with an outcome on every member."""
        if not self._fleet.rewards:
            raise ConfigError("this needs rewards, but rewards.fns is empty; name at least one")
        self._console.phase("score", self.step + 1)
        items = [(m.text, g.task) for g in groups for m in g.members]
        shares = _shares(len(items), len(self._fleet.rewards))
        with self._timed("reward"):
            calls = [
                (worker, worker.handle.score.remote([items[i] for i in share]))
                for worker, share in zip(self._fleet.rewards, shares, strict=True)
            ]
            answers = self._fleet.waits.get(calls, "reward", self.cfg.deadlines.reward)
        outcomes: Iterator[Outcome] = (o for answer in answers for o in answer)
        return [
            dataclasses.replace(
                g, members=tuple(dataclasses.replace(m, outcome=next(outcomes)) for m in g.members)
            )
            for g in groups
        ]

    def _note_rewards(self, groups: Sequence[Group]) -> None:
        """Logs what was collected, before anything is filtered; stops when rewards fail."""
        members, _ = members_of(groups)
        row = self._row
        row.update(_reward_summary(members))
        row["groups"] = len(groups)
        row["groups/flat"] = sum(len(set(g.rewards)) <= 1 for g in groups) / max(1, len(groups))
        row["tokens/prompt"] = sum(m.prompt_len for m in members)
        row["tokens/completion"] = sum(m.num_tokens for m in members)
        row["completion/mean_tokens"] = row["tokens/completion"] / max(1, len(members))
        row["completion/truncated"] = sum(m.truncated for m in members) / max(1, len(members))
        self._save_samples(groups, "train")
        failed = [m for m in members if m.outcome is not None and m.outcome.kind == "error"]
        if failed:
            first = failed[0].outcome
            assert first is not None
            share = len(failed) / len(members)
            message = f"{len(failed)} of {len(members)} rewards failed; the first:\n{first.reason}"
            if share > self.cfg.rewards.max_error_share:
                raise RewardFailed(
                    f"step {self.step + 1}: {message}\nMore than rewards.max_error_share="
                    f"{self.cfg.rewards.max_error_share:g} of the step: stopping. A failed reward is "
                    f"never counted as 0."
                )
            self._console.say(f"step {self.step + 1}: {message}")

    def _save_samples(self, groups: Sequence[Group], kind: str) -> None:
        """Appends the first completions of the step, whole groups together."""
        pairs = [(g.task, m) for g in groups for m in g.members][:_SAMPLES_A_STEP]
        for task, m in pairs:
            outcome = m.outcome
            self._samples.append(
                {
                    "step": self.step + (kind == "train"),
                    "kind": kind,
                    "task": task.id,
                    "prompt": task.prompt,
                    "completion": m.text,
                    "target": task.target,
                    "reward": outcome.reward if outcome else None,
                    "parts": dict(outcome.parts) if outcome else {},
                    "outcome": outcome.kind if outcome else None,
                    "reason": outcome.reason if outcome else "",
                    "tokens": m.num_tokens,
                    "truncated": m.truncated,
                    "version": list(m.version),
                }
            )

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
            lines.append({"step": self.step + 1, "id": m.id, "task": m.task_id, "completion": m.text})
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
    algo, env = check_plugins(cfg)
    with ray_session(cfg, console.say) as resources:
        cfg = _after_warm_start(cfg, folder, resume)
        placement = make_plan(cfg, resources)
        for line in placement.lines:
            console.say(line)
        _open_folder(cfg, folder, resume)
        start = start_folder(cfg, folder)
        waits = Waits(console.say, folder / "stacks", cfg.deadlines.notice)
        needs = frozenset().union(*(term.needs for term in algo.terms))
        began = time.monotonic()
        fleet = start_fleet(cfg, placement, waits, start, needs, console.say)
        console.say(f"started {_census(fleet)} in {time.monotonic() - began:.1f} s; run folder {folder}")
        try:
            run = Run(cfg, algo, env, folder, start, fleet, console)
            if resume:
                run.restore_latest()
            with console.live():
                return _loop(run, resume)
        finally:
            fleet.close()


def _loop(run: Run, resumed: bool) -> dict[str, float]:
    cfg = run.cfg
    run.publish(WeightUpdate(max(run.version, 0), run.version, "full", ()))
    first: dict[str, float] = {}
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
    (run.folder / "result.json").write_text(json.dumps({"step": run.step, **result}, indent=1))
    return result


def check_plugins(cfg: Config) -> tuple[Algo, Any]:
    """Resolves every plug-in of `cfg` and checks what they need of each other; returns (algo, env).

    Raises PluginError or ConfigError.
    """
    algo: Algo = registry.build("algo", cfg.algo)
    env = registry.build("env", cfg.env)
    for spec in cfg.rewards.fns:
        registry.build("reward", {"name": spec.fn, **spec.args})
    registry.resolve("engine", cfg.sampler.engine)
    registry.build("transport", cfg.publish.transport)
    if cfg.model.build is not None:
        spec = cfg.model.build if isinstance(cfg.model.build, dict) else {"name": cfg.model.build}
        registry.build("model", spec)
    evaluates = cfg.eval.every or cfg.eval.at_start or cfg.eval.at_end
    if (algo.samples or evaluates) and cfg.sampler.num == 0:
        what = f"algo {type(algo).__name__}" if algo.samples else "eval"
        raise ConfigError(f"{what} samples, but sampler.num is 0; set it to at least 1")
    if (algo.samples or evaluates) and not cfg.rewards.fns:
        raise ConfigError("rewards.fns is empty; name at least one reward, e.g. [{fn: gsm8k}]")
    _ship_by_value()
    return algo, env


def _ship_by_value() -> None:
    """Classes of plug-in files travel to actors with their code: no actor has to find the file."""
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("rlft_plugin_"):
            ray.cloudpickle.register_pickle_by_value(module)


def new_folder(cfg: Config) -> Path:
    """A new run folder: `<run_root>/<name>/<date-time>`, absolute."""
    parent = Path(cfg.run_root).expanduser().resolve() / cfg.name
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder, extra = parent / stamp, 1
    while folder.exists():
        extra += 1
        folder = parent / f"{stamp}-{extra}"
    return folder


def latest_folder(cfg: Config) -> Path:
    """The newest run folder of this name. Raises CheckpointError when there is none."""
    parent = Path(cfg.run_root).expanduser().resolve() / cfg.name
    found = sorted(p for p in parent.glob("*") if (p / "config.yaml").is_file())
    if not found:
        raise CheckpointError(f"nothing to resume: no run in {parent}; run without --resume")
    return found[-1]


def _open_folder(cfg: Config, folder: Path, resume: bool) -> None:
    """Writes the resolved configuration and the versions before anything else happens."""
    if not resume and (folder / "metrics.jsonl").exists():
        raise ConfigError(f"{folder} already holds a run; continue it with --resume, or choose another")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(cfg))
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))


def _after_warm_start(cfg: Config, folder: Path, resume: bool) -> Config:
    """Runs the warm start, unless it was finished before, and starts from its model."""
    if cfg.warm_start is None:
        return cfg
    warm = load_config(cfg.warm_start)
    below = folder / "warm_start"
    if not (below / "result.json").is_file():
        unfinished = resume and newest_checkpoint(below / "checkpoints") is not None
        main(warm.model_copy(update={"seed": cfg.seed}), below, resume=unfinished)
    newest = newest_checkpoint(below / "checkpoints")
    if newest is None:
        raise ConfigError(f"{cfg.warm_start}: the warm start saved no model; set save.at_end=true there")
    model = cfg.model.model_copy(update={"path": str(newest / "model")})
    return cfg.model_copy(update={"model": model})


def _identity(cfg: Config) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that resumes it."""
    algo = cfg.algo if isinstance(cfg.algo, str) else cfg.algo.get("name")
    env = cfg.env if isinstance(cfg.env, str) else cfg.env.get("name")
    model = cfg.model.model_dump(mode="json", include={"build", "dtype", "lora"})
    return {
        "name": cfg.name,
        "algo": algo,
        "env": env,
        "seed": cfg.seed,
        "model": model,
        "model.path": Path(cfg.model.path).name if cfg.model.path else None,
        "learner.num": cfg.learner.num,
        "learner.zero_stage": cfg.learner.zero_stage,
        "tasks_per_step": cfg.tasks_per_step,
    }


def _refuse_foreign(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differ = [f"{k}: {theirs.get(k)!r} there, {v!r} here" for k, v in ours.items() if theirs.get(k) != v]
    if differ:
        raise CheckpointError(
            f"{folder} belongs to another run ({'; '.join(differ)}). Resume it with its own "
            f"configuration ({folder.parents[1] / 'config.yaml'}), or start a new run."
        )


def _reward_summary(members: Sequence[Trajectory]) -> dict[str, float]:
    """Mean, spread and named parts over members that have a reward, and the shares that do not."""
    rewards = np.array([m.reward for m in members if m.reward is not None], np.float64)
    kinds = [m.outcome.kind for m in members if m.outcome is not None]
    out: dict[str, float] = {
        "reward/invalid": kinds.count("invalid") / max(1, len(kinds)),
        "reward/errors": kinds.count("error") / max(1, len(kinds)),
    }
    if len(rewards):
        out |= {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std())}
    parts: dict[str, list[float]] = {}
    for m in members:
        for name, value in (m.outcome.parts if m.outcome else {}).items():
            parts.setdefault(name, []).append(value)
    out |= {f"reward/{name}": float(np.mean(values)) for name, values in parts.items()}
    return out


def _shares(count: int, workers: int) -> list[range]:
    """Contiguous shares of `count` things, as equal as can be: fixed by the two numbers alone."""
    edges = [count * i // workers for i in range(workers + 1)]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _census(fleet: Fleet) -> str:
    counts = {"sampler": fleet.samplers, "learner": fleet.learners, "reward worker": fleet.rewards}
    return ", ".join(f"{len(owners)} {role}" for role, owners in counts.items() if owners)


def _finish(coroutine: Any) -> Any:
    """Runs a coroutine that never truly waits (blocking waits live in `Waits`)."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("a coroutine of the loop waited for something outside")


