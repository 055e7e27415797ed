"""Supervised fine-tuning on the tasks' own demonstrations: the baseline, and the warm start.

Maximum likelihood of the response given the prompt; the prompt itself is not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlft.algo import Algo
from rlft.config import Positive
from rlft.errors import DataError
from rlft.losses import NegativeLogLikelihood
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class SFT(Algo):
    """aggregate: mean over tokens of the batch, or over responses; epochs: passes over each batch."""

    samples: ClassVar[bool] = False

    aggregate: Literal["token", "sequence"] = "token"
    epochs: Positive = 1
    minibatches: Positive = 1

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("nll", NegativeLogLikelihood()),)

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        groups = await run.demos(ticket.tasks)
        if not groups:
            raise DataError("none of the step's tasks has a demonstration; SFT needs Task.demos")
        return groups

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        return run.fit(
            groups, None, aggregate=self.aggregate, epochs=self.epochs, minibatches=self.minibatches
        )
