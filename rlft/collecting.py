"""What the `collect` of an algorithm is given: verbs for one ticket, with a row of its own.

Nothing here is shared with the step that is being learnt from, so that tickets may be collected ahead,
on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlft.collect import Collector
from rlft.config import Config
from rlft.errors import RewardFailed
from rlft.filters import drop_errors, members_of
from rlft.record.metrics import JsonLines, StepRow
from rlft.record.summary import collected, sample_rows
from rlft.seeding import Key
from rlft.types import Group, Task


@dataclass(frozen=True, slots=True)
class Collecting:
    """Verbs: `rollout`, `score`, `demos`. step: steps taken before this one; version: of the weights
    when it began; key: the root of randomness (draw from `ticket.key`); state: the algorithm's own,
    to be read only; row: the metrics of this ticket."""

    cfg: Config
    step: int
    version: int
    key: Key
    state: Any
    _collector: Collector
    _samples: JsonLines
    _say: Callable[[str], None]
    _phase: Callable[[str, int], None]
    row: StepRow = field(default_factory=StepRow)

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
        with self.row.timed("rollout"):
            return self._collector.sample(tasks, n, key, greedy, max_tokens)

    async def score(self, groups: Sequence[Group]) -> list[Group]:
        """Scores every member. A member whose reward failed is left out of its group, and counted;
        it is never a 0. Raises RewardFailed when too many failed."""
        self._phase("score", self.step + 1)
        with self.row.timed("reward"):
            groups = self._collector.outcomes(groups)
        self.row.update(collected(groups))
        for row in sample_rows(groups, self.step + 1, "train"):
            self._samples.append(row)
        self._stop_if_rewards_fail(groups)
        return drop_errors(groups)

    async def demos(self, tasks: Sequence[Task]) -> list[Group]:
        """Each task with its reference responses as members of origin `demo`, unscored."""
        return self._collector.demos(tasks, self.version)

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
        self._say(message)
