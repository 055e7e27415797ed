"""Rejection fine-tuning: sample, keep the answers that are right, imitate them."""

from dataclasses import dataclass

from rlft.algo import Algo
from rlft.filters import keep_correct
from rlft.losses import NegativeLogLikelihood
from rlft.types import Term


@dataclass(frozen=True)
class RFT(Algo):
    """num_samples: answers per task; threshold: the least reward that counts as right."""

    num_samples: int = 8
    threshold: float = 1.0

    @property
    def terms(self):
        return (Term("nll", NegativeLogLikelihood()),)

    async def collect(self, run, ticket):
        groups = await run.rollout(ticket.tasks, n=self.num_samples, key=ticket.key)
        return keep_correct(await run.score(groups), self.threshold)

    def learn(self, run, groups):
        return run.fit(groups, None, aggregate="sequence")
