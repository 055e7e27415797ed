"""Behaviour cloning: the likelihood of demonstrated actions, before any reward is seen.

The share `held_out` of the demonstrations is kept aside, whole episodes, and measured with each step. An
entropy bonus keeps the policy from being surer than its data: what is fine-tuned afterwards must still
explore. Files: rlft/demonstrations.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rlft import registry
from rlft.algo import Algo
from rlft.cloning import strips_of
from rlft.config import Config, Positive
from rlft.losses.entropy import EntropyBonus
from rlft.losses.likelihood import NegativeLogLikelihood
from rlft.schedule import Scheduled
from rlft.types import Group, Strip, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class Clone(Algo):
    """path: demonstrations, `.npz`, `.jsonl` or `minari:ID`; held_out: the share kept aside;
    entropy_coef: weight of the bonus; batch: steps of the demonstrations in one optimizer step (whole
    episodes, where the policy has a memory); minibatches: optimizer steps of one step of the run."""

    acts: ClassVar[bool] = True
    samples: ClassVar[bool] = False

    path: str
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2
    entropy_coef: Scheduled = 0.01
    batch: Positive = 256
    minibatches: Positive = 16

    @property
    def terms(self) -> tuple[Term, ...]:
        terms = [Term("nll", NegativeLogLikelihood())]
        if self.entropy_coef != 0:
            terms.append(Term("entropy_bonus", EntropyBonus(), self.entropy_coef))
        return tuple(terms)

    def suits(self, cfg: Config) -> list[str]:
        train, held_out = self.split(cfg)
        steps = sum(len(s.reward) for s in train)
        return [
            f"demonstrations: {len(train):,} episodes of {steps:,} steps, {len(held_out):,} held out"
        ]

    def split(self, cfg: Config) -> tuple[list[Strip], list[Strip]]:
        """(training, held-out) demonstrations, split by the run's seed."""
        strips = strips_of(self.path, registry.build("env", cfg.env))
        order = np.random.default_rng(cfg.seed).permutation(len(strips))
        aside = int(len(strips) * self.held_out)
        return [strips[i] for i in order[aside:]], [strips[i] for i in order[:aside]]

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        return []

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        train, held_out = self.split(run.cfg)
        if held_out:
            run.fit_strips(held_out, learn=False)
        key = run.key.child("demonstrations", run.step)
        return run.fit_strips(
            some_of(train, self.batch * self.minibatches, key.seed()), minibatches=self.minibatches
        )


def some_of(strips: Sequence[Strip], steps: int, seed: int) -> list[Strip]:
    """Random episodes of together at least so many steps, or all of them."""
    found: list[Strip] = []
    count = 0
    for i in np.random.default_rng(seed).permutation(len(strips)):
        if count >= steps:
            break
        found.append(strips[i])
        count += len(strips[i].reward)
    return found
