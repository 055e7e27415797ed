"""A reward model whose process dies once, in the middle of a batch, when a file tells it to."""

import os
import signal
from pathlib import Path

from rlft.rewards.model import RewardModel


class DyingModel(RewardModel):
    """As RewardModel, but for the file `die` beside the weights."""

    def scores(self, inputs):
        plan = Path(self.path) / "die"
        if plan.exists():
            plan.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().scores(inputs)
