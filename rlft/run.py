"""A run: the verbs that algorithms compose, and those of the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlft.algo import Algo
from rlft.cluster.fleet import Fleet
from rlft.collect import Collector
from rlft.collecting import Collecting
from rlft.config import Config
from rlft.credit.decision import NOTHING, ByToken
from rlft.credit.steps import StepAdvantages
from rlft.errors import NonFinite
from rlft.filters import members_of
from rlft.learning.fit import FitReport
from rlft.learning.job import fit_job
from rlft.learning.noise import Drawing, Noise, NoiseStep
from rlft.losses.aggregate import Aggregation
from rlft.policy.text import Text
from rlft.record.bundle import Bundles
from rlft.record.checkpoint import Position, identity, write_checkpoint
from rlft.record.console import Console
from rlft.record.metrics import JsonLines, StepRow
from rlft.record.records import Records
from rlft.record.summary import reward_summary, staleness, success, token_rows
from rlft.scoring import Scoring
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Group, Task, Ticket, Trajectory, WeightUpdate
from rlft.weights.proof import canary_ids
from rlft.weights.publisher import Publisher

_SKIPS_BEFORE_STOP = 3


class Run:
    """What a run is and does. An algorithm learns with `fit`, `measure` and `note`, and collects with the
    verbs of what `collecting` returns; the loop's own are `publish`, `record`, `evaluate`, `save`,
    `restore`."""

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
        self.records = Records(cfg, folder, console)
        self._bundles = Bundles(cfg, folder, start, fleet)
        self._row = StepRow()
        self._skips = 0
        self._collector = Collector(cfg, fleet, self._text)
        self._scoring = Scoring(cfg.rewards, self._collector, folder, self.key, console.say)
        first = self._text.prompt_ids(self._tasks.ticket(0).tasks[0].prompt)
        size = json.loads((start / "config.json").read_text())["vocab_size"]
        self._publisher = Publisher(cfg, fleet, canary_ids(first, size, self.key))

    # -- verbs of algorithms ---------------------------------------------------------------------

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
        """Takes `epochs x minibatches` optimizer steps on every member of `groups`.

        adv: one number per member in order, or for its steps, or None (all 0, for losses that do not
        use it); by_token: how learner ranks make advantages of each token from it; together: members
        of a group are never split over micro-batches, for losses of pairs; packed: short rows lie
        behind each other in one sequence, attention kept apart. Returns the update to
        publish, or None if there were no rows or every step was skipped.
        """
        members, unit = members_of(groups)
        if not members:
            return None
        job = fit_job(
            *(self.cfg, self.algo, self.step, members, adv, self.state),
            aggregate=aggregate,
            epochs=epochs,
            minibatches=minibatches,
            by_token=by_token,
            unit=unit if together else None,
            packed=packed,
        )
        self._console.phase("learn", self.step + 1)
        began = time.monotonic()
        with self._row.timed("learn"), self._fleet.samplers_asleep():
            reports = self._ask_learners("fit", job, [m.row for m in members])
        self._fleet.was_busy("learners", (time.monotonic() - began) * self.cfg.learner.num)
        self.state = self.algo.next_state(self.state, reports[0].metrics)
        self._row.update(reports[0].metrics)
        self._row["rows"] = len(members)
        trained = epochs * sum(m.num_tokens for m in members)
        self._row["tokens/trained"] = self._row.get("tokens/trained", 0) + trained
        traces = [trace for report in reports for trace in report.traces]
        self.records.tokens(list(token_rows(self.step + 1, traces, members, self._text)))
        self._stop_if_nonfinite(reports, members, len(job.updates))
        if job.critic_only or reports[0].skipped == len(job.updates):
            return None
        return WeightUpdate(self.version + 1, self.version, "full", ())

    def measure(
        self,
        groups: Sequence[Group],
        adv: Sequence[float] | torch.Tensor | None,
        *,
        aggregate: Aggregation = "token",
        together: bool = False,
    ) -> dict[str, float]:
        """What `fit` would report of `groups`, at least one, without learning from them."""
        members, unit = members_of(groups)
        job = fit_job(
            *(self.cfg, self.algo, self.step, members, adv, self.state),
            aggregate=aggregate,
            epochs=1,
            minibatches=1,
            unit=unit if together else None,
            learn=False,
        )
        with self._row.timed("measure"), self._fleet.samplers_asleep():
            [report, *_] = self._ask_learners("fit", job, [m.row for m in members])
        return dict(report.metrics)

    def add_noise(self, step: NoiseStep) -> WeightUpdate:
        """Moves the weights along seeds; returns the update to publish. For algorithms `by_noise`."""
        report = self._of_master("add_noise", step)
        self._row.update(report)
        return WeightUpdate(self.version + 1, self.version, "noise", ())

    def losses(
        self, groups: Sequence[Group], probes: Sequence[Noise], drawing: Drawing
    ) -> list[float]:
        """The mean negative log-likelihood of all members' tokens under each of `probes`, in nats."""
        members, _ = members_of(groups)
        found = self._of_master("losses", probes, drawing, [m.row for m in members])
        self._row["rows"] = len(members)
        return found

    def keep_best(self) -> None:
        """The learner keeps the weights of now, for `recall_best`. For algorithms `by_noise`."""
        self._of_master("keep_best")

    def recall_best(self) -> WeightUpdate:
        """Puts the weights of the last `keep_best` back; returns the update to publish."""
        self._of_master("recall_best")
        return WeightUpdate(self.version + 1, self.version, "full", ())

    def _of_master(self, method: str, *args: Any) -> Any:
        self._console.phase("learn", self.step + 1)
        began = time.monotonic()
        with self._row.timed("learn"), self._fleet.samplers_asleep():
            [answer] = self._ask_learners(method, *args)
        self._fleet.was_busy("learners", time.monotonic() - began)
        return answer

    def note(self, numbers: Mapping[str, float]) -> None:
        """Adds an algorithm's own numbers to the metrics of the step."""
        self._row.update(numbers)

    @property
    def held_out(self) -> list[Task]:
        """The held-out tasks, at most `eval.max_tasks`."""
        return [self._held_out[i] for i in range(min(self.cfg.eval.max_tasks, len(self._held_out)))]

    def demos(self, tasks: Sequence[Task]) -> list[Group]:
        """Each task with its reference responses as members of origin `demo`, unscored."""
        return self._collector.demos(tasks, self.version)

    # -- verbs of the loop -----------------------------------------------------------------------

    def publish(self, update: WeightUpdate | None) -> None:
        """Moves the samplers to the learner's weights, and proves that they got and use them."""
        if update is None:
            return
        if self._fleet.samplers:
            self._console.phase("publish", self.step + 1)
            with self._row.timed("publish"):
                self._row["publish/canary_gap"] = self._publisher.send(update.version)
        self.version = update.version

    def learn(self, row: StepRow, groups: list[Group]) -> WeightUpdate | None:
        """The algorithm's `learn` on what was collected, with `row` its metrics; what it starts from is
        kept first, if this step is to be replayed."""
        self._row = row
        row.update(staleness(groups, self.version))
        self._bundles.begin(self.step + 1, self.version, groups, self.state)
        return self.algo.learn(self, groups)

    def record(self, groups: Sequence[Group], seconds: float) -> None:
        """Appends the row of the step that just ended, and some of its samples."""
        members, _ = members_of(groups)
        row: dict[str, Any] = {"step": self.step, "version": self.version}
        row["tokens/prompt"] = row["tokens/completion"] = 0
        row["tokens/sampled"] = row["tokens/trained"] = row["reward/calls"] = 0
        for phase in ("step", "rollout", "reward", "learn", "publish"):
            row[f"time/{phase}_s"] = 0.0
        row["time/step_s"] = seconds
        if "tokens/completion" not in self._row:
            row["tokens/prompt"] = sum(m.prompt_len for m in members)
            row["tokens/completion"] = sum(m.num_tokens for m in members)
        row["recovery/restarts"] = self._restarts()
        idle = self._fleet.idle_shares()
        row["time/idle_share_learners"] = idle["learners"]
        if "samplers" in idle:
            row["time/idle_share_samplers"] = idle["samplers"]
        row.update(self._row)
        self._row = StepRow()
        self.records.step(row)
        self._bundles.finish(row)

    def evaluate(self) -> dict[str, float]:
        """Greedy success on held-out tasks; appended to `eval.jsonl`."""
        cfg = self.cfg.eval
        tasks = self.held_out
        self._console.phase("evaluate", self.step)
        began = time.monotonic()
        completions = self._collector.sample(tasks, 1, self.key.child("eval"), True, cfg.max_tokens)
        groups = self._scoring.outcomes(completions, self.step, "eval")
        members, _ = members_of(groups)
        result = {f"eval/{k}": v for k, v in reward_summary(members).items()}
        result["eval/tasks"] = float(len(tasks))
        result["eval/tokens"] = sum(m.num_tokens for m in members) / max(1, len(members))
        result["time/eval_s"] = time.monotonic() - began
        result["recovery/restarts"] = float(self._restarts())
        self.records.evaluation({"step": self.step, "version": self.version, **result})
        self.records.samples(groups, self.step, "eval")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in success(result).items())
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
                self._fleet.learners,
                "save",
                folder,
                what="save",
                deadline_s=self.cfg.deadlines.save,
            )

        state = {
            "version": self.version,
            "identity": identity(self.cfg),
            "score": self.records.score(),
        }
        keep, best_is = self.cfg.save.keep, self.cfg.save.best_is
        root = self.folder / "checkpoints"
        return write_checkpoint(root, self.step, state, self.state, write, keep, best_is)

    def restore(self, position: Position) -> None:
        """Continues from a checkpoint of the run folder, bit for bit on CPU."""
        folder, state = position.folder, position.state
        self._fleet.all(
            self._fleet.learners, "load", folder, what="load", deadline_s=self.cfg.deadlines.save
        )
        self.state = position.algo_state
        self.step, self.version = state["step"], state["version"]
        self.records.rewind(self.step)
        self._scoring.account.forget_after(self.step)
        self._console.say(f"resumed from {folder}")

    def collecting(self, ticket: Ticket) -> Collecting:
        """What the algorithm collects with for `ticket`."""
        return Collecting(
            self.cfg,
            ticket.index,
            self.version,
            self.key,
            self.state,
            self._collector,
            self._scoring,
            self.records,
            self._console.phase if not self.cfg.max_staleness else lambda phase, step: None,
        )

    def tickets(self) -> Iterator[Ticket]:
        """The tickets not yet learnt from."""
        return (self._tasks.ticket(index) for index in range(self.step, self.cfg.steps))

    def turn(self) -> None:
        """Says that the next step begins: in waits, and on the live line."""
        self._fleet.waits.stage = f"step {self.step + 1}"
        if self.step < self.cfg.steps:
            self._console.phase("collect", self.step + 1)

    def abandon(self, thread: int) -> None:
        """Ends the waits of a thread that collected ahead of a loop that has ended."""
        self._fleet.waits.abandon(thread)

    def due(self, what: Any) -> bool:
        """Whether the section `what` (with `every` and `at_end`) asks for its turn now."""
        last = self.step == self.cfg.steps
        return bool(what.at_end) if last else bool(what.every and self.step % what.every == 0)

    # -- inside ----------------------------------------------------------------------------------

    def _restarts(self) -> int:
        """Restarts since they were last recorded: each is counted in one row."""
        count, self._fleet.restarts = self._fleet.restarts, 0
        return count

    def _ask_learners(self, method: str, *args: Any) -> list:
        limit = self.cfg.deadlines.learn
        return self._fleet.all(self._fleet.learners, method, *args, what="learn", deadline_s=limit)

    def _stop_if_nonfinite(
        self, reports: Sequence[FitReport], members: Sequence[Trajectory], updates: int
    ) -> None:
        skipped = max(reports[0].skipped, reports[0].critic_skipped)
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
