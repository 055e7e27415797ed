"""What a run writes down, in one place: each fact is said once here and goes to every record of it.

`metrics.jsonl`, `eval.jsonl`, `samples.jsonl`, `tokens.jsonl` and `alerts.jsonl` are the record; the
console, trackers and the report are views of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlft.config import Config
from rlft.record.allowance import Allowance
from rlft.record.console import Console
from rlft.record.guards import Watch
from rlft.record.metrics import JsonLines
from rlft.record.report import write_report
from rlft.record.summary import sample_rows
from rlft.record.writers import Writers, trackers
from rlft.types import Group


class Records:
    """The records of one run folder. `stop`: why a guard wants the run to end, or None; `allowance`:
    what of its budget is left."""

    def __init__(self, cfg: Config, folder: Path, console: Console) -> None:
        self._cfg, self._folder, self._console = cfg, folder, console
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._evals = JsonLines(folder / "eval.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._tokens = JsonLines(folder / "tokens.jsonl")
        self._alerts = JsonLines(folder / "alerts.jsonl")
        self._watch = Watch(cfg.guards)
        self._writers = Writers(trackers(cfg, folder), self._complain)
        self._latest: dict[str, Any] = {}
        self._step = 0
        self.stop: str | None = None
        self.allowance = Allowance(cfg.budget)

    def step(self, row: Mapping[str, Any]) -> None:
        """The row of a step that ended."""
        self._remember(row)
        self._metrics.append(row)
        self._writers.log(row, self._step)
        self.allowance.add(row)
        self._console.step(row, self.allowance.share)
        for alert in self._watch.step(row):
            self._alerts.append(alert.row())
            self._console.say(f"alert: step {alert.step}: {alert.message}")
            if alert.stop:
                self.stop = f"step {alert.step}: {alert.message}"

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """The row of an evaluation."""
        self._remember(row)
        self._evals.append(row)
        self._writers.log(
            {k: v for k, v in row.items() if k not in ("step", "version")}, self._step
        )

    def samples(self, groups: Sequence[Group], step: int, kind: str) -> None:
        """Some completions of a step or an evaluation."""
        for row in sample_rows(groups, step, kind):
            self._samples.append(row)

    def sample(self, row: Mapping[str, Any]) -> None:
        """A row of `samples.jsonl`."""
        self._samples.append(row)

    def tokens(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Completions token by token."""
        for row in rows:
            self._tokens.append(row)

    def evaluations(self) -> list[dict[str, float]]:
        """What was evaluated so far, each with its `step`."""
        return [
            {k: v for k, v in row.items() if k == "step" or k.startswith("eval/")}
            for row in self._evals.rows()
        ]

    def score(self) -> dict[str, Any]:
        """What `save.best` goes by: the metric and its value at this step, if it has one."""
        metric = self._cfg.save.best
        value = self._latest.get(metric) if metric else None
        return {"metric": metric, "value": value} if value is not None else {}

    def rewind(self, step: int) -> None:
        """Forgets what lies after `step`: a resumed run takes those steps again."""
        self.forget_after(step)
        kept = list(self._metrics.rows())
        self.allowance = Allowance(self._cfg.budget, kept)
        for row in kept:
            self._watch.step(row)

    def forget_after(self, step: int) -> None:
        """Drops the rows of steps after `step`."""
        for lines in (self._metrics, self._evals, self._samples, self._tokens, self._alerts):
            lines.forget_after(step)

    @contextmanager
    def open(self) -> Iterator[None]:
        """While inside, the run goes on; afterwards, however it ended, the records are closed."""
        try:
            yield
        except BaseException as error:
            self.close(error)
            raise
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """Trackers are closed, and the report is written. error: what ended the run early."""
        if error is not None:
            said = str(error).strip() or type(error).__name__
            self._alert("end", type(error).__name__, f"the run ended early: {said}")
        for line in self._writers.close(ok=error is None):
            self._alert("tracker", line.partition(":")[0], line)
            self._console.say(line)
        if not self._cfg.record.report:
            return
        try:
            write_report(self._folder)
        except Exception as fault:  # it must not hide how the run ended
            self._console.say(
                f"report.html was not written ({type(fault).__name__}: {fault}); "
                f"`rlft report {self._folder}` tries again"
            )

    def _remember(self, row: Mapping[str, Any]) -> None:
        if row["step"] != self._step:
            self._latest = {}
        self._step = int(row["step"])
        self._latest |= row

    def _alert(self, kind: str, name: str, message: str) -> None:
        row = {"step": self._step, "kind": kind, "name": name, "stop": False, "message": message}
        self._alerts.append(row)

    def _complain(self, tracker: str, why: str) -> None:
        self._alert("tracker", tracker, f"{tracker} failed: {why}")
        self._console.say(f"alert: {tracker} failed: {why}")
