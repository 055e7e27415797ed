"""The reward worker actor: plug-in rewards, away from the driver and the engines."""

from __future__ import annotations

import ray

from rlft import registry
from rlft.cluster import stacks
from rlft.config import Rewards
from rlft.rewards.outcome import score_one
from rlft.types import Outcome, Task


def part_names(rewards: Rewards) -> list[str]:
    """What the parts of each function are called in the log: its name, numbered if not unique."""
    names = [spec.fn.rsplit(":", 1)[-1] for spec in rewards.fns]
    return [n if names.count(n) == 1 else f"{n}{i}" for i, n in enumerate(names)]


class RewardWorker:
    """Scores completions with the configured functions, resolved here, where they are needed."""

    def __init__(self, name: str, rewards: Rewards) -> None:
        self._where = stacks.register(name)
        self._invalid_score = rewards.invalid_score
        self._fns = [
            (part, registry.build("reward", {"name": spec.fn, **spec.args}), spec.weight)
            for part, spec in zip(part_names(rewards), rewards.fns, strict=True)
        ]
        self._done, self._asked = 0, 0

    def whereabouts(self) -> stacks.Whereabouts:
        return self._where

    def score(self, items: list[tuple[str, Task]]) -> list[Outcome]:
        """Outcomes of (completion, task) pairs, in order."""
        self._done, self._asked = 0, len(items)
        outcomes = []
        for completion, task in items:
            outcomes.append(score_one(self._fns, completion, task, self._invalid_score))
            self._done += 1
        return outcomes

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int]:
        """(scored, asked for); answered on a thread of its own."""
        return self._done, self._asked
