"""PPO for policies that act (arXiv 1707.06347), with the details that its reference codes agree on.

Of "The 37 Implementation Details of PPO" (and CleanRL's ppo.py): orthogonal weights (of layers; a GRU or
LSTM has torch's), Adam with eps 1e-5 (`learner.eps`, which is 1e-8 unless set; our configurations set
it), annealed learning rate (`learner.lr` as a schedule), GAE, minibatches in random order, advantages
standardised a minibatch, clipped surrogate, clipped value loss, entropy bonus, global gradient norm,
separate networks for policy and value, early stop by KL (`target_kl`). A truncated episode is
bootstrapped by the value of its last observation, which CleanRL leaves out. Beyond it: the exact KL to
the behaviour policy as a term (`kl_coef`), whole episodes in place of segments (`unit`), V-trace (whose
advantages hold the weight of stale data once and the surrogate once more, as in Sample Factory's APPO and
unlike in IMPALA), and a count bonus; rewards may be clipped, and the critic alone trained for some first
steps (a policy that was cloned comes without one, arXiv 2402.02868). The policy's log-probs, values and
distributions are those it acted with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rlft.algo import Algo
from rlft.config import Natural, Positive
from rlft.credit.decision import GAE, Credit
from rlft.credit.vtrace import VTrace
from rlft.errors import ConfigError
from rlft.losses.acting import acting_terms
from rlft.losses.surrogate import ClippedSurrogate
from rlft.schedule import Scheduled, value_at
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class ControlPPO(Algo):
    """unit: `segment` collects `steps` steps of every environment, `episode` one whole episode from each
    configuration `episodes` times; gamma, lam: of GAE or V-trace; vtrace: credit for data of older
    weights; clip: of the surrogate; value_clip: null for none; value_coef, entropy_coef, kl_coef: of the
    terms; normalise: over what advantages are standardised; critic_lr: null for the policy's;
    target_kl: no further epoch beyond it, in nats; ucb: weight of a bonus for steps seldom taken;
    reward_clip: rewards beyond it count as it, null: none; critic_only: so many first steps of the run
    train nothing but what the value alone reads."""

    acts: ClassVar[bool] = True
    max_staleness: ClassVar[int] = 1_000

    unit: Literal["segment", "episode"] = "segment"
    steps: Positive = 128
    episodes: Positive = 1
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    vtrace: bool = False
    clip: Annotated[float, Field(gt=0, le=1)] = 0.2
    value_clip: float | None = 0.2
    value_coef: Scheduled = 0.5
    entropy_coef: Scheduled = 0.01
    kl_coef: Scheduled = 0.0
    normalise: Literal["minibatch", "batch", "none"] = "minibatch"
    critic_lr: Scheduled | None = None
    target_kl: float | None = None
    ucb: Scheduled = 0.0
    reward_clip: Annotated[float, Field(gt=0)] | None = None
    critic_only: Natural = 0
    epochs: Positive = 4
    minibatches: Positive = 4

    def __post_init__(self) -> None:
        if self.vtrace and self.normalise == "batch" and self.minibatches > 1:
            raise ConfigError(
                f"algo.vtrace takes credit anew for each minibatch, so there is nothing to normalise over "
                f"a batch of algo.minibatches={self.minibatches}; set algo.normalise: minibatch, or "
                f"minibatches: 1"
            )

    @property
    def terms(self) -> tuple[Term, ...]:
        return acting_terms(
            ClippedSurrogate(self.clip, self.clip),
            value_clip=self.value_clip,
            value_coef=self.value_coef,
            entropy_coef=self.entropy_coef,
            kl_coef=self.kl_coef,
        )

    def credit(self) -> Credit:
        """Advantages and targets of each step."""
        if self.vtrace:
            return VTrace(self.gamma, self.lam)
        return GAE(self.gamma, self.lam, whiten=False)

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        if self.unit == "episode":
            return await run.episodes(ticket.tasks, n=self.episodes, key=ticket.key)
        return await run.segments(self.steps, key=ticket.key)

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        return run.fit(
            groups,
            credit=self.credit(),
            epochs=self.epochs,
            minibatches=self.minibatches,
            normalise=self.normalise,
            critic_lr=None if self.critic_lr is None else value_at(self.critic_lr, run.step),
            target_kl=self.target_kl,
            ucb=value_at(self.ucb, run.step),
            reward_clip=self.reward_clip,
            critic_only=run.step < self.critic_only,
        )
