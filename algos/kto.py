"""KTO: responses that are wanted and responses that are not, each for itself (arXiv 2402.01306).

The data are pairs; each gives one response of either kind, weighed apart (`desirable`, `undesirable`). The
reference point is the mean log ratio of policy to reference over responses to other prompts, here the
chosen one of the next pair, over the whole batch and not below 0. Left out: rows without a partner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from algos.dpo import fit_pairs, given
from rlft.algo import Algo
from rlft.config import Positive
from rlft.losses.pairs import Desirability
from rlft.pairing import as_pairs, with_unrelated
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class KTO(Algo):
    """beta: how hard the reference holds; desirable, undesirable: weights of the two kinds; epochs,
    minibatches: passes over each step's pairs, and updates in each."""

    samples: ClassVar[bool] = False

    beta: Annotated[float, Field(gt=0)] = 0.1
    desirable: Annotated[float, Field(ge=0)] = 1.0
    undesirable: Annotated[float, Field(ge=0)] = 1.0
    epochs: Positive = 1
    minibatches: Positive = 1

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("kto", Desirability(self.beta, self.desirable, self.undesirable)),)

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        return await given(run, with_unrelated(as_pairs(ticket.tasks)))

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        if not groups:
            return None
        return fit_pairs(run, groups, self.epochs, self.minibatches)
