"""The reward worker actor: keeps a reward process, and answers for it.

The functions run in that process and not here, because a function that hangs, forks or runs out of
memory must be killed without losing the actor, and because this process has the run's credentials.
"""

from __future__ import annotations

import os

import ray

from rlft.cluster import stacks
from rlft.config import Rewards
from rlft.rewards.scorer import Scored, Scorer


class RewardWorker:
    """Scores completions with the configured functions.

    folder: where the run was started; start_s: seconds that importing the functions may take.
    """

    def __init__(self, name: str, rewards: Rewards, folder: str, start_s: float) -> None:
        self._where = stacks.register(name)
        self._scorer = Scorer(rewards, (folder, os.getcwd()), start_s)

    def whereabouts(self) -> stacks.Whereabouts:
        """Also starts the process, so that an answer means that the rewards can be used."""
        self._scorer.start()
        return self._where

    def score(self, items: list[bytes]) -> Scored:
        """Outcomes of pickled (Attempt, Task) pairs, in order; this process need not unpickle them."""
        return self._scorer.score(items)

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int]:
        """(scored, asked for); answered on a thread of its own."""
        return self._scorer.done, self._scorer.asked
