"""Reward-model training: which of two responses is better, as a score of each (Bradley-Terry).

The model is a sequence-classification model with one label: the start model under a new head, or a
reward model that is trained further. `checkpoints/step_N/model` is an ordinary Hugging Face folder, and
serves as a reward (docs/learn-from-preferences.md). Nothing is sampled: set `sampler.num: 0`. Left out:
LoRA, and losses over more than two responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algos.dpo import fit_pairs, given, held_out_numbers
from rlft.algo import Algo
from rlft.config import Natural, Positive
from rlft.losses.pairs import BradleyTerry
from rlft.pairing import as_pairs
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class RewardModel(Algo):
    """margin: by how much the chosen score shall be above the rejected one, times the pair's own margin
    if it has one; held_out_every: steps between measuring the held-out pairs, and after the last one, 0
    for never; epochs, minibatches: passes over each step's pairs, and updates in each."""

    samples: ClassVar[bool] = False

    margin: float = 0.0
    held_out_every: Natural = 50
    epochs: Positive = 1
    minibatches: Positive = 1

    def __post_init__(self) -> None:
        BradleyTerry(self.margin)

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("pairs", BradleyTerry(self.margin)),)

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        return await given(run, as_pairs(ticket.tasks))

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        if not groups:
            return None
        update = fit_pairs(run, groups, self.epochs, self.minibatches)
        run.note(held_out_numbers(run, self.held_out_every))
        return update
