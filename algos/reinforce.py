"""REINFORCE with a learned baseline, for policies that act (Williams 1992; Sutton et al. 1999).

One step up the gradient of `sum log pi(a|s) (R - V(s))` for each batch, where R is what reward came from
the step on. No ratio and no clipping: what is learnt from was collected with these very weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rlft.algo import Algo
from rlft.config import Natural, Positive
from rlft.credit.decision import GAE
from rlft.losses.acting import acting_terms
from rlft.losses.reinforce import Reinforce
from rlft.schedule import Scheduled, value_at
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class ControlReinforce(Algo):
    """episodes: from each configuration; gamma: discount; normalise: over what advantages are
    standardised; value_coef, entropy_coef, kl_coef: of the terms; critic_lr: null for the policy's;
    critic_only: as in control_ppo; ucb: weight of a bonus for steps seldom taken; minibatches: optimizer
    steps a batch, each on its share."""

    acts: ClassVar[bool] = True

    episodes: Positive = 8
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    normalise: Literal["minibatch", "batch", "none"] = "none"
    value_coef: Scheduled = 0.5
    entropy_coef: Scheduled = 0.0
    kl_coef: Scheduled = 0.0
    critic_lr: Scheduled | None = None
    critic_only: Natural = 0
    ucb: Scheduled = 0.0
    minibatches: Positive = 1

    @property
    def terms(self) -> tuple[Term, ...]:
        return acting_terms(
            Reinforce(),
            value_clip=None,
            value_coef=self.value_coef,
            entropy_coef=self.entropy_coef,
            kl_coef=self.kl_coef,
        )

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        return await run.episodes(ticket.tasks, n=self.episodes, key=ticket.key)

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        return run.fit(
            groups,
            credit=GAE(self.gamma, 1.0, whiten=False),
            minibatches=self.minibatches,
            normalise=self.normalise,
            critic_lr=None if self.critic_lr is None else value_at(self.critic_lr, run.step),
            ucb=value_at(self.ucb, run.step),
            critic_only=run.step < self.critic_only,
        )
