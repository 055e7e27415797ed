"""Rejection-sampling fine-tuning (RFT, Yuan et al., arXiv 2308.01825): makes the rows that it trains on.

Sample `num_samples` answers a question from a model that was fine-tuned before; keep what is right in
its answer and by `check`; of the answers with one `key` keep one, the farthest from the question's other
kept ones. The result is `rows.jsonl` in the run folder, each question's gold row first. The *base* model
learns from it in a run of its own, `algo: {name: sft, rows: RUN/rows.jsonl}`: two runs, since the model
that samples and the model that is trained are not the same.

`combine` adds the kept rows of other runs, by other models. With `online: true` the sampling model also
learns from each step's rows at once: every step is a round, as in ReST. STaR's rounds, each from the
base, are the two runs again with the new model (docs/sample-and-filter.md).

Departures from the paper's code: `eval` is a safe parser; runs that are combined bring their kept rows,
not every right answer, so the keys are the same and the text that stands for one may differ.
The config aims at the paper's shape, not at a number: accuracy follows the distinct paths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from rlft import registry
from rlft.algo import Algo
from rlft.config import Config, Positive
from rlft.errors import ConfigError
from rlft.losses import NegativeLogLikelihood
from rlft.paths.row_file import RowFile
from rlft.paths.rows import Kept, Question, read_questions
from rlft.paths.selection import Check, Distance, Key, added
from rlft.types import Group, Term, Ticket, Trajectory, WeightUpdate


@dataclass(frozen=True)
class RFT(Algo):
    """num_samples: answers a question (the paper's k); threshold: the least reward that is right; check:
    what else must be right, null for nothing; key: when two answers are one path; distance: which of them
    stays, null for the first; gold: demonstrations are rows, too; combine: `rows.jsonl` of other runs;
    online: also train the sampling model on each step's rows; aggregate, epochs, minibatches: of that."""

    num_samples: Positive = 8
    threshold: float = 1.0
    check: str | dict | None = "marks"
    key: str | dict = "marks"
    distance: str | dict | None = "edit"
    gold: bool = True
    combine: str | list[str] | None = None
    online: bool = False
    aggregate: Literal["token", "sequence"] = "token"
    epochs: Positive = 1
    minibatches: Positive = 1

    def __post_init__(self) -> None:
        self._plugins()
        self.init_state()  # a file that cannot be combined is an error now

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("nll", NegativeLogLikelihood()),)

    def init_state(self) -> RowFile:
        """The questions, with what is kept of each."""
        *_, key, distance = self._plugins()
        found = RowFile()
        for path in [self.combine] if isinstance(self.combine, str) else self.combine or []:
            for one in read_questions(path, key):
                found.add(one, distance)
        return found

    def suits(self, cfg: Config) -> list[str]:
        """Refuses retention where nothing is trained."""
        if cfg.retention and not self.online:
            raise ConfigError(
                "retention: algo rft trains nothing unless algo.online is true, so there is nothing to "
                "keep; put it into the run that learns from rows.jsonl (algo: sft)"
            )
        return []

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        """A group a task, also where nothing is right: its demonstrations, then its right answers."""
        check, *_ = self._plugins()
        tasks = list({task.id: task for task in ticket.tasks}.values())  # two passes may meet
        sampled = await run.rollout(tasks, n=self.num_samples, key=ticket.key)
        scored = {g.task.id: g.members for g in await run.score(sampled)}
        gold = {g.task.id: g.members for g in await run.demos(tasks)} if self.gold else {}
        groups, passed, right = [], 0, 0
        for task in tasks:
            well = [m for m in scored.get(task.id, ()) if (m.reward or 0.0) >= self.threshold]
            kept = tuple(m for m in well if check is None or check(m.text, task))
            passed, right = passed + len(well), right + len(kept)
            groups.append(Group(task, (*gold.get(task.id, ()), *kept)))
        num = sum(len(members) for members in scored.values())
        run.note({"rft/passed": passed / max(1, num), "rft/right": right / max(1, num)})
        return groups

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        _, key, distance = self._plugins()
        chosen = []
        for group in groups:
            here, members = self._question(run, group, key, distance)
            run.state.add(here, distance)
            chosen.append(replace(group, members=members))
        kept = [len(run.state.questions[g.task.id].kept) for g in groups]
        paths = sum(kept) / max(1, len(kept))
        run.note({"rft/paths": paths, "rft/none": float(kept.count(0))})
        run.note({"rft/rows": float(run.state.write(run.folder / "rows.jsonl"))})
        if not self.online:
            return None
        return run.fit(
            [g for g in chosen if g.members],
            None,
            aggregate=self.aggregate,
            epochs=self.epochs,
            minibatches=self.minibatches,
        )

    def _question(self, run, group: Group, key: Key, distance: Distance | None) -> Any:
        """What this step found for a question, and the members behind it: its rows to train on."""
        model = run.cfg.model
        source = {
            "model": str(model.path or model.build),
            "seed": run.cfg.seed,
            "step": run.step + 1,
        }
        gold = tuple(m for m in group.members if m.origin == "demo")
        kept: tuple[Kept, ...] = ()
        by_text: dict[str, Trajectory] = {}
        for m in group.members:
            if m.origin == "demo":
                continue
            by_text.setdefault(m.text, m)
            one = Kept(m.text, key(m.text), {**source, "version": m.version[1], "sample": m.id})
            kept = added(kept, one, distance)
        texts = tuple(m.text for m in gold)
        question = Question(group.task.id, group.task.prompt, texts, kept)
        return question, (*gold, *(by_text[k.text] for k in kept))

    def _plugins(self) -> tuple[Check | None, Key, Distance | None]:
        check = None if self.check is None else registry.build("check", self.check)
        far = None if self.distance is None else registry.build("distance", self.distance)
        return check, registry.build("key", self.key), far
