"""A run of a policy that writes: the verbs of algorithms over prompts, answers and their rewards."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
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
from rlft.filters import members_of
from rlft.learning.job import fit_job
from rlft.learning.noise import Drawing, Noise, NoiseStep
from rlft.losses.aggregate import Aggregation
from rlft.policy.text import Text
from rlft.record.bundle import Bundles
from rlft.record.console import Console
from rlft.record.summary import reward_summary, success, token_rows
from rlft.run import Run
from rlft.scoring import Scoring
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Group, Task, Ticket, WeightUpdate
from rlft.weights.proof import canary_ids


class TextRun(Run):
    """An algorithm learns with `fit`, `measure` and `note`, and collects with the verbs of what
    `collecting` returns."""

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
        self._text = Text(start, cfg.sampler.stop)
        first = self._text.prompt_ids(tasks.ticket(0).tasks[0].prompt)
        size = json.loads((start / "config.json").read_text())["vocab_size"]
        canary = canary_ids(first, size, Key(cfg.seed))
        super().__init__(cfg, algo, tasks, held_out, folder, fleet, console, start, canary)
        self._bundles = Bundles(cfg, folder, start, fleet)
        self._collector = Collector(cfg, fleet, self._text)
        self._scoring = Scoring(cfg.rewards, self._collector, folder, self.key, console.say)

    def before_learning(self, groups: Sequence[Group]) -> None:
        """Keeps what the step starts from, if it is to be replayed."""
        self._bundles.begin(self.step + 1, self.version, groups, self.state, self.taken)

    def after_step(self, row: Mapping[str, Any]) -> None:
        """Adds to the bundle what came of the step."""
        self._bundles.finish(row)

    def forget_ahead(self) -> None:
        """Also what rewards said."""
        super().forget_ahead()
        self._scoring.account.forget_after(self.step)

    def restore_more(self, folder: Path, step: int) -> None:
        """Forgets what rewards said after `step`."""
        self._scoring.account.forget_after(step)

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
        behind each other in one sequence, attention kept apart. Returns the update to publish, or None
        if there were no rows or every step was skipped.
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
            taken=self.taken,
        )
        self._console.phase("learn", self.step + 1)
        began = time.monotonic()
        with self._row.timed("learn"), self._fleet.samplers_asleep():
            reports = self._ask_learners("fit", job, [m.row for m in members])
        self._fleet.was_busy("learners", (time.monotonic() - began) * self.cfg.learner.num)
        self.state = self.algo.next_state(self.state, reports[0].metrics)
        if not job.critic_only:
            self.taken += len(job.updates) - reports[0].skipped
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
            taken=self.taken,
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

    def demos(self, tasks: Sequence[Task]) -> list[Group]:
        """Each task with its reference responses as members of origin `demo`, unscored."""
        return self._collector.demos(tasks, self.version)

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
        result["recovery/restarts"] = float(self._fleet.restarts())
        self.records.evaluation({"step": self.step, "version": self.version, **result})
        self.records.samples(groups, self.step, "eval")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in success(result).items())
        self._console.say(
            f"eval after step {self.step}: {shown}  ({len(tasks)} held-out tasks, greedy, "
            f"{result['time/eval_s']:.1f} s)"
        )
        return result

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
