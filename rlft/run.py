"""A run: what every run can do, whatever its policy reads. `run_text.py` and `run_control.py` add the verbs
of algorithms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rlft.algo import Algo
from rlft.cluster.fleet import Fleet
from rlft.config import Config
from rlft.errors import NonFinite
from rlft.filters import members_of
from rlft.learning.fit import FitReport
from rlft.probes.schedule import Probing
from rlft.record.checkpoint import Position, identity, write_checkpoint
from rlft.record.console import Console
from rlft.record.metrics import JsonLines, StepRow
from rlft.record.records import Records
from rlft.record.summary import staleness
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Group, Task, Ticket, Trajectory, WeightUpdate
from rlft.weights.publisher import Publisher, Sent

_SKIPS_BEFORE_STOP = 3


class Run:
    """The verbs of the loop: `publish`, `learn`, `record`, `evaluate`, `save`, `restore`, and `collecting`,
    which returns what an algorithm collects with. start: the folder of the policy that it starts from;
    canary: what weights are compared on (`Publisher`)."""

    in_order: ClassVar[bool] = False
    """Whether what samplers are asked after a publish, they do with the weights published."""

    def __init__(
        self,
        cfg: Config,
        algo: Algo,
        tasks: TaskStream,
        held_out: Sequence[Task],
        folder: Path,
        fleet: Fleet,
        console: Console,
        start: Path,
        canary: list[int],
    ) -> None:
        self.cfg, self.algo, self.folder = cfg, algo, folder
        self.step, self.version = 0, -1
        self.taken = 0  # optimizer steps of the run
        self.state = algo.init_state()
        self.key = Key(cfg.seed)
        self._fleet, self._console = fleet, console
        self._tasks, self._held_out = tasks, held_out
        self.records = Records(cfg, folder, console)
        self._row = StepRow()
        self._skips = 0
        self._publisher = Publisher(cfg, fleet, canary, in_order=self.in_order)
        self._sent: deque[Sent] = deque()  # and not yet proved
        self.probing = Probing(cfg, start, folder, fleet.waits, self._write_model)

    def collecting(self, ticket: Ticket) -> Any:
        """What the algorithm collects with for `ticket`: it has a `row` of metrics."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """How good the policy is on held-out tasks; appended to `eval.jsonl`."""
        raise NotImplementedError

    def before_learning(self, groups: Sequence[Group]) -> None:
        """Called with what a step is to learn from."""

    def after_step(self, row: Mapping[str, Any]) -> None:
        """Called with the row of a step that ended."""

    def save_more(self, folder: Path) -> None:
        """Adds to a checkpoint what this kind of run must not lose."""

    def restore_more(self, folder: Path, step: int) -> None:
        """Restores what `save_more` wrote."""

    def note(self, numbers: Mapping[str, float]) -> None:
        """Adds an algorithm's own numbers to the metrics of the step."""
        self._row.update(numbers)

    @property
    def held_out(self) -> list[Task]:
        """The held-out tasks, at most `eval.max_tasks`."""
        return [self._held_out[i] for i in range(min(self.cfg.eval.max_tasks, len(self._held_out)))]

    def publish(
        self, update: WeightUpdate | None, finished: Callable[[], None] = lambda: None
    ) -> None:
        """Moves the samplers to the learner's weights, and proves that they got and use them. finished:
        called when what is collected from then on is collected with these weights. Ahead and `in_order`
        that is proved later, before anything that these weights sampled is learnt from or evaluated."""
        if update is None:
            return

        def on_their_way() -> None:
            self.version = update.version
            if self.in_order:
                finished()

        if self._fleet.samplers:
            self._console.phase("publish", self.step + 1)
            with self._row.timed("publish"):
                self._sent.append(self._publisher.begin(update.version, on_their_way))
            if not self._publisher.later:
                self.prove()
        self.version = update.version

    def prove(self, version: int | None = None, *, last: bool = False) -> None:
        """Proves what was published up to `version`, None: all. last: nothing is sampled any more. Raises
        WeightsMismatch."""
        while self._sent and (version is None or self._sent[0].update.version <= version):
            with self._row.timed("publish"):
                gap = self._publisher.prove(self._sent.popleft(), last=last)
            self._row["publish/canary_gap"] = max(gap, self._row.get("publish/canary_gap", 0.0))

    def learn(self, row: StepRow, groups: list[Group]) -> WeightUpdate | None:
        """The algorithm's `learn` on what was collected, with `row` its metrics; what it starts from is
        kept first, if this step is to be replayed."""
        # Between steps the run may have waited for a probe, and an evaluation may have proved what it used.
        proofs = ("publish/canary_gap",) if self._publisher.later else ()
        for name in ("time/probe_wait_s", *proofs):
            if name in self._row:
                row[name] = self._row[name]
        self._row = row
        members, _ = members_of(groups)
        newest = max((m.version[1] for m in members), default=-1)
        # A sampler that never got a version has no sample of it, so the bound asks too.
        self.prove(max(newest, self.version - self.cfg.max_staleness))
        row.update(staleness(groups, self.version))
        self.before_learning(groups)
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
        row["recovery/restarts"] = self._fleet.restarts()
        idle = self._fleet.idle_shares()
        row["time/idle_share_learners"] = idle["learners"]
        if "samplers" in idle:
            row["time/idle_share_samplers"] = idle["samplers"]
        row.update(self._row)
        self._row = StepRow()
        self.records.step(row)
        self.after_step(row)

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
            self.save_more(folder)

        state = {
            "version": self.version,
            "taken": self.taken,
            "identity": identity(self.cfg),
            "score": self.records.score(),
        }
        keep, best_is = self.cfg.save.keep, self.cfg.save.best_is
        root = self.folder / "checkpoints"
        return write_checkpoint(root, self.step, state, self.state, write, keep, best_is)

    def probe(self) -> None:
        """Has the policy as it is measured by the probes, beside the run."""
        if self.cfg.probes.fns:
            self._console.phase("probe", self.step)
            self._row["time/probe_wait_s"] = self.probing.probe(self.step)

    def close(self) -> None:
        """Ends what the run started by itself."""
        self.probing.close()

    def _write_model(self, folder: Path) -> None:
        limit = self.cfg.deadlines.save
        self._fleet.all(self._fleet.learners, "write_model", folder, what="save", deadline_s=limit)

    def restore(self, position: Position) -> None:
        """Continues from a checkpoint of the run folder, bit for bit on CPU."""
        folder, state = position.folder, position.state
        self._fleet.all(
            self._fleet.learners, "load", folder, what="load", deadline_s=self.cfg.deadlines.save
        )
        self.state = position.algo_state
        self.step, self.version = state["step"], state["version"]
        self.taken = state.get("taken", 0)
        self.records.rewind(self.step)
        self.probing.resume(self.step)
        self.restore_more(folder, self.step)
        self._console.say(f"resumed from {folder}")

    def tickets(self) -> Iterator[Ticket]:
        """The tickets not yet learnt from."""
        last = self.step if self.done else self.cfg.steps
        return (self._tasks.ticket(index) for index in range(self.step, last))

    @property
    def done(self) -> bool:
        """Whether the run ends here: its steps are taken, or its budget is spent."""
        return self.step >= self.cfg.steps or self.records.allowance.spent is not None

    def turn(self) -> None:
        """Says that the next step begins: in waits, and on the live line."""
        self._fleet.waits.stage = f"step {self.step + 1}"
        if not self.done:
            self._console.phase("collect", self.step + 1)

    def forget_ahead(self) -> None:
        """Forgets what was collected for steps that the run will not take."""
        self.records.forget_after(self.step)

    def abandon(self, thread: int) -> None:
        """Ends the waits of a thread that collected ahead of a loop that has ended."""
        self._fleet.waits.abandon(thread)

    def due(self, what: Any) -> bool:
        """Whether the section `what` (with `every` and `at_end`) asks for its turn now."""
        return bool(what.at_end) if self.done else bool(what.every and self.step % what.every == 0)

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
        for m in (members[row] for row in guilty if row < len(members)):
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
