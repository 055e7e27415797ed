"""A run of a policy that acts in an environment: the verbs of algorithms over strips of episodes."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlft.acting import Acting, Stage
from rlft.algo import Algo
from rlft.cluster.fleet import Fleet
from rlft.config import Config
from rlft.credit.decision import Credit
from rlft.filters import members_of
from rlft.learning.strip_job import Normalise, StripJob
from rlft.record.acted import acted, samples
from rlft.record.console import Console
from rlft.record.summary import success
from rlft.retention.term import terms_of
from rlft.run import Run
from rlft.schedule import coef_at, value_at
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Group, RowRef, Strip, Task, Ticket, WeightUpdate

_ENVIRONMENTS = "environments.pkl"


class ControlRun(Run):
    """An algorithm learns with `fit` and `note`, and collects with the verbs of `Acting`."""

    in_order = True  # a runner does one thing after the other

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
        super().__init__(cfg, algo, tasks, held_out, folder, fleet, console, start, [])
        self._stage = Stage(cfg, fleet, Key(cfg.seed))
        self._unseen = False

    def fit(
        self,
        groups: Sequence[Group],
        number: Sequence[float] | None = None,
        *,
        credit: Credit | None,
        epochs: int = 1,
        minibatches: int = 1,
        normalise: Normalise = "none",
        unit: Literal["step", "strip"] = "step",
        critic_lr: float | None = None,
        target_kl: float | None = None,
        ucb: float = 0.0,
        reward_clip: float | None = None,
        critic_only: bool = False,
    ) -> WeightUpdate | None:
        """Takes `epochs x minibatches` optimizer steps on the strips of `groups`.

        credit: from rewards and values to advantages and targets; number: one a strip for it, NaN:
        nothing; normalise: over what advantages get mean 0 and deviation 1; unit: what minibatches are
        made of (strips, where a policy has a memory or credit is taken anew); critic_lr: of a critic that
        shares nothing with the policy, None: the policy's; target_kl: no further epoch beyond it, nats a
        step; ucb: weight of a bonus for actions seldom taken on an observation (`Visits`), added to
        advantages; reward_clip: rewards beyond it count as it; critic_only: the policy and what it shares
        with the critic stay as they are. Returns the update to publish, or None if there was nothing to
        learn from.
        """
        members = [m for m in members_of(groups)[0] if m.num_tokens]
        if not members:
            return None
        numbers = np.full(len(members), np.nan, np.float32)
        if number is not None:
            kept = [x for x, m in zip(number, members_of(groups)[0], strict=True) if m.num_tokens]
            numbers = np.asarray(kept, np.float32)
        job = self._job(
            numbers,
            [m.origin == "policy" for m in members],
            credit=credit,
            epochs=epochs,
            minibatches=minibatches,
            normalise=normalise,
            unit=unit,
            critic_lr=critic_lr,
            target_kl=target_kl,
            ucb=ucb,
            reward_clip=reward_clip,
            critic_only=critic_only,
        )
        self._row["tokens/trained"] = float(epochs * sum(m.num_tokens for m in members))
        return self._fitted(job, [m.row for m in members], members)

    def fit_strips(
        self,
        strips: Sequence[Strip],
        *,
        epochs: int = 1,
        minibatches: int = 1,
        learn: bool = True,
        stream: np.ndarray | None = None,
        minibatch: np.ndarray | None = None,
    ) -> WeightUpdate | None:
        """The same on demonstrations at hand: every step counts, whoever chose it, without credit.
        learn: False to measure only; stream, minibatch: of windows of streams, see `StripJob`."""
        import ray

        stored = ray.put(list(strips))
        job = self._job(
            np.full(len(strips), np.nan, np.float32),
            [False] * len(strips),
            credit=None,
            critic_lr=None,
            epochs=epochs,
            minibatches=minibatches,
            learn=learn,
            stream=stream,
            minibatch=minibatch,
        )
        if learn:
            self._row["tokens/trained"] = float(epochs * sum(len(s.reward) for s in strips))
        return self._fitted(job, [RowRef(stored, i) for i in range(len(strips))], [])

    def _job(self, number: np.ndarray, on_policy: Sequence[bool], **how: Any) -> StripJob:
        """how: the other fields of a job, but for those that the run knows."""
        terms = terms_of(self.cfg, self.algo)
        return StripJob(
            number=number,
            on_policy=np.asarray(on_policy, bool),
            terms=terms,
            coef=tuple(coef_at(t.coef, self.step, self.state) for t in terms),
            key=self.key.child("fit", self.step),
            lr=value_at(self.cfg.learner.lr, self.step),
            token_budget=self.cfg.learner.token_budget,
            step=self.step,
            taken=self.taken,
            **how,
        )

    def _fitted(self, job: StripJob, refs: list[RowRef], members: list) -> WeightUpdate | None:
        self._console.phase("learn", self.step + 1)
        began = time.monotonic()
        with self._row.timed("learn"), self._fleet.samplers_asleep():
            reports = self._ask_learners("fit", job, refs)
        self._fleet.was_busy("learners", (time.monotonic() - began) * self.cfg.learner.num)
        report = reports[0]
        if not job.learn:
            self._row.update({f"held_out/{k}": v for k, v in report.metrics.items() if "/" in k})
            return None
        self.state = self.algo.next_state(self.state, report.metrics)
        self._row.update(report.metrics)
        self._row["rows"] = len(refs)
        updates = int(report.metrics["updates"])
        self.taken += 0 if job.critic_only else updates - report.skipped
        self._stop_if_nonfinite(reports, members, updates)
        if report.skipped == updates:
            return None
        return WeightUpdate(self.version + 1, self.version, "full", ())

    # -- of the loop -----------------------------------------------------------------------------

    def collecting(self, ticket: Ticket) -> Acting:
        """What the algorithm collects with for `ticket`."""
        return Acting(
            self.cfg, ticket.index, self.version, self.key, self.state, self._stage, self.records
        )

    def evaluate(self) -> dict[str, float]:
        """Returns on held-out configurations; appended to `eval.jsonl`."""
        cfg = self.cfg.eval
        began = time.monotonic()
        self.prove()
        self._console.phase("evaluate", self.step)
        key = self.key.child("eval")
        groups = self._stage.episodes(self.held_out, cfg.episodes, key, cfg.greedy, record=False)
        found = acted(groups)
        result = {
            f"eval/{k}": v for k, v in found.items() if k.split("/")[0] in ("reward", "episode")
        }
        result["eval/tasks"] = float(len(groups))
        result["eval/tokens"] = found.get("episode/length", 0.0)
        result["time/eval_s"] = time.monotonic() - began
        result["recovery/restarts"] = float(self._fleet.restarts())
        self.records.evaluation({"step": self.step, "version": self.version, **result})
        for row in samples(groups, self.step, "eval"):
            self.records.sample(row)
        self._film(key, cfg.greedy)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in success(result).items())
        how = "greedy" if cfg.greedy else "sampled"
        self._console.say(
            f"eval after step {self.step}: {shown}  ({len(groups)} configurations x {cfg.episodes}, "
            f"{how}, {result['time/eval_s']:.1f} s)"
        )
        return result

    def _film(self, key: Key, greedy: bool) -> None:
        """Films the first episodes of the run's first and last evaluation, into `films/`; says once that
        it cannot be done."""
        place = self.folder / "films"
        if self._unseen or not self.cfg.record.films:
            return
        if place.is_dir() and not self.done:
            return
        films = self._stage.films(self.held_out, self.cfg.record.films, key, greedy)
        for number, (film, why) in enumerate(films):
            if not film:
                self._unseen = True
                self._console.say(f"no films: the environment draws nothing ({why})")
                return
            place.mkdir(exist_ok=True)
            (place / f"step_{self.step:06d}.{number}.gif").write_bytes(film)

    def abandon(self, thread: int) -> None:
        """Ends the waits of a thread that collected ahead of a loop that has ended, and of the lanes."""
        super().abandon(thread)
        self._stage.close()

    def close(self) -> None:
        """Ends what the run started by itself."""
        self._stage.close()
        super().close()

    def after_step(self, row: Any) -> None:
        """Gives up where environments were before the step."""
        self._stage.forget_before(self.step)

    def save_more(self, folder: Path) -> None:
        """Where each environment is."""
        left = self._stage.left(self.step)
        if left is not None:
            (folder / _ENVIRONMENTS).write_bytes(pickle.dumps(left))

    def restore_more(self, folder: Path, step: int) -> None:
        """Puts each environment where it was."""
        path = folder / _ENVIRONMENTS
        if path.is_file():
            self._stage.put_back(step, pickle.loads(path.read_bytes()))
