"""A plan of deaths: a folder of empty files. `rollout.3` is the third `generate` of whichever engine comes
there first; the file is removed on arrival, so the replacement lives. Nothing heavy is imported here: the
reward that may die is imported by each reward process."""

import os
import signal
from collections import Counter
from pathlib import Path

from plain_rewards import vowels


class Plan:
    """Counts arrivals at each moment, in this process."""

    def __init__(self, folder):
        self._folder, self._arrivals = Path(folder), Counter()

    def due(self, moment, number=None):
        """Whether this arrival (the `number`th, by default counted here) is planned for."""
        self._arrivals[moment] += 1
        try:
            (self._folder / f"{moment}.{number or self._arrivals[moment]}").unlink()
        except FileNotFoundError:
            return False
        return True

    def meet(self, moment, number=None, how=signal.SIGKILL, whom=None):
        if self.due(moment, number):
            os.kill(whom or os.getpid(), how)


_plans = {}


def plan(folder):
    return _plans.setdefault(str(folder), Plan(folder))


def reward(completion, task, folder=""):
    plan(folder).meet("reward")
    return vowels(completion, task)
