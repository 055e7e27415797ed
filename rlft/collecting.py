"""What the `collect` of an algorithm is given: verbs for one ticket, with a row of its own.

Nothing here is shared with the step that is being learnt from, so that tickets may be collected ahead,
on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlft.collect import Collector
from rlft.config import Config
from rlft.filters import drop_errors
from rlft.learning.noise import Drawing, Noise
from rlft.record.metrics import StepRow
from rlft.record.records import Records
from rlft.record.summary import collected, drawn
from rlft.scoring import Scoring
from rlft.seeding import Key
from rlft.types import Group, Guide, Task


@dataclass(frozen=True, slots=True)
class Collecting:
    """Verbs: `rollout`, `score`, `demos`, `note`. step: steps taken before this one; version: of the
    weights when it began; key: the root of randomness (draw from `ticket.key`); state: the
    algorithm's own, to be read only; row: the metrics of this ticket."""

    cfg: Config
    step: int
    version: int
    key: Key
    state: Any
    _collector: Collector
    _scoring: Scoring
    _records: Records
    _phase: Callable[[str, int], None]
    row: StepRow = field(default_factory=StepRow)
    _scored: list[Group] = field(default_factory=list)

    async def rollout(
        self,
        tasks: Sequence[Task],
        *,
        n: int,
        key: Key,
        greedy: bool = False,
        max_tokens: int | None = None,
        guide: Guide | None = None,
    ) -> list[Group]:
        """Samples `n` completions of each task; group `i` belongs to `tasks[i]`, unscored.

        guide: see `Guide`; where a demonstration is missing or longer than `max_tokens`, a sample.
        The seed of a completion depends on `key`, the task's place and the member alone, so it does
        not matter which engine drew it.
        """
        with self.row.timed("rollout"):
            groups = self._collector.sample(tasks, n, key, greedy, max_tokens, guide)
        self._drew(drawn(groups))
        return groups

    async def population(
        self,
        tasks: Sequence[Task],
        members: Mapping[int, Noise],
        drawing: Drawing,
        *,
        key: Key,
        greedy: bool = True,
        together: int = 1,
    ) -> list[Group]:
        """One completion of each task under each of `members`, unscored; group `i` belongs to `tasks[i]`.

        members: by their number in the population, which their trajectories carry. The unit of work
        is `together` members with all their prompts, given to whichever sampler is free: who evaluates
        what does not change the result. Seeds are common to all members.
        """
        with self.row.timed("rollout"):
            groups, perturbing = self._collector.population(
                tasks, members, drawing, key, greedy, together
            )
        self.row["time/perturb_s"] = self.row.get("time/perturb_s", 0.0) + perturbing
        self._drew(drawn(groups))
        return groups

    async def score(
        self, groups: Sequence[Group], least: int = 2, *, again: bool = False
    ) -> list[Group]:
        """Scores every member. A member whose reward failed is left out of its group, and counted;
        it is never a 0; `rewards.on_error: refill` samples others in its place. Groups that are left
        with fewer than `least` are counted. Raises RewardFailed when too many failed. again: what failed
        in this step is tried a second time, and whether it was too much has been judged."""
        step = self.step + 1
        self._phase("score", step)
        with self.row.timed("reward"):
            groups = self._scoring.outcomes(groups, step, "train")
        self._records.samples(groups, step, "train")
        if not again:
            self._scoring.stop_if_too_many_failed(groups, step)
        if self.cfg.rewards.on_error == "refill":
            before = drawn(groups)
            with self.row.timed("refill"):
                groups = self._scoring.refilled(groups, step)
            self._drew(drawn(groups) - before)
        restarts = self.row.get("reward/restarts", 0) + self._scoring.restarts()
        self._scored.extend(groups)  # an algorithm may score several times in a step
        self.row.update({**collected(self._scored, least), "reward/restarts": restarts})
        return drop_errors(groups)

    async def demos(self, tasks: Sequence[Task]) -> list[Group]:
        """Each task with its reference responses as members of origin `demo`, unscored."""
        return self._collector.demos(tasks, self.version)

    def _drew(self, tokens: int) -> None:
        self.row["tokens/sampled"] = self.row.get("tokens/sampled", 0) + tokens

    def note(self, numbers: Mapping[str, float]) -> None:
        """Adds an algorithm's own numbers to the metrics of the step."""
        self.row.update(numbers)
