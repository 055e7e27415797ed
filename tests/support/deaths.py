"""Plug-ins that kill or freeze a process at a planned moment, once. The plan is the folder `deaths` beside
the model."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from planned import plan

from algos.grpo import GRPO
from rlft.losses import ClippedSurrogate
from rlft.sampling.transformers import TransformersEngine


class Engine(TransformersEngine):
    """Dies or freezes with half of its rollout done, or with half of its new weights loaded."""

    def __init__(self, model, **keys):
        super().__init__(model, **keys)
        self._plan = plan(Path(model) / "deaths")

    def generate(self, requests, sampling):
        if len(requests) > 1:  # not the warm-up
            for moment, how in (("rollout", signal.SIGKILL), ("freeze", signal.SIGSTOP)):
                if self._plan.due(moment):
                    super().generate(requests[:1], sampling)
                    os.kill(os.getpid(), how)
        return super().generate(requests, sampling)

    def load(self, tensors):
        def halfway():
            for place, pair in enumerate(tensors):
                if place == 5:
                    self._plan.meet("publish")
                yield pair

        super().load(halfway())


@dataclass(frozen=True)
class Loss(ClippedSurrogate):
    """The usual one; its process dies, or it raises, in the middle of learning."""

    folder: str = ""

    def __call__(self, out, batch):
        plan(self.folder).meet("learn")
        if plan(self.folder).due("raise"):
            raise ZeroDivisionError("planned")
        return super().__call__(out, batch)


class State:
    """Kills the driver while its checkpoint is being written."""

    def __init__(self, folder):
        self.folder = folder

    def __getstate__(self):
        plan(self.folder).meet("save")
        return self.__dict__


@dataclass(frozen=True)
class Algo(GRPO):
    """GRPO whose driver dies before it learns, or kills an idle sampler."""

    deaths: str = ""

    def init_state(self):
        return State(self.deaths)

    def learn(self, run, groups):
        plan(self.deaths).meet("driver", run.step + 1)
        idle = run._fleet.samplers[-1].where
        plan(self.deaths).meet("idle", run.step + 1, whom=idle.pid)
        plan(self.deaths).meet("worker", run.step + 1, whom=run._fleet.rewards[0].where.pid)
        return super().learn(run, groups)
