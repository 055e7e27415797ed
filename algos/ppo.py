"""PPO: clipped policy gradient with a learned critic and GAE (arXiv 1707.06347; for language models
InstructGPT, arXiv 2203.02155).

The critic says of each token what reward is still to come; a token's advantage is what came beyond
that, by generalised advantage estimation over the answer's tokens with the reward at the last. So
credit differs between tokens of an answer, and one answer a task is enough: no group is needed.

The critic is a model of its own in its own DeepSpeed engine, as in OpenRLHF and verl: it starts from
the policy's weights (or `critic`), has its own learning rate, and its errors cannot harm the policy.
It costs the policy's memory once more; a value head on the policy's trunk would be cheaper, but its
loss pulls at the weights that are sampled from. Left out: that head; bootstrapping of answers that
were cut off; the pre-training mix of InstructGPT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlft import registry
from rlft.algo import Algo
from rlft.config import Natural, Positive
from rlft.credit.decision import GAE, ByToken
from rlft.filters import rewards_of
from rlft.losses.corrected import Corrected
from rlft.losses.critic import ValueLoss
from rlft.losses.kl import Estimator, KLToReference
from rlft.schedule import Scheduled, value_at
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class PPO(Algo):
    """group_size: answers per task; gamma, lam: of GAE; whiten: advantages standardised over the
    batch's tokens; clip_low, clip_high, dual_clip: of the clipped surrogate; loss: a plug-in in its
    place; kl_reward: each token's reward is lowered by this times its log-ratio to the reference;
    kl_coef, kl: a KL penalty as a loss; aggregate: mean over tokens, over answers, or by a constant
    length, of both losses; correction: weights between engine and learner, one or a list, null for
    none; critic: Hugging Face folder that the critic starts from, null for the policy's; critic_lr: its
    learning rate; critic_warmup: first steps in which the critic alone learns; value_clip: how far a
    value may move from the old one, null for no bound."""

    max_staleness: ClassVar[int] = (
        1_000  # as GRPO: each token is weighed by the version that drew it
    )

    group_size: Positive = 1
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = 1.0
    whiten: bool = True
    loss: str | dict | None = None
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregate: Literal["token", "sequence", "constant"] = "token"
    kl_reward: Scheduled = 0.0
    kl_coef: Scheduled = 0.0
    kl: Estimator = "k3"
    correction: str | dict | list[str | dict] | None = "token_truncate"
    critic: str | None = None
    critic_lr: Scheduled = 1e-5
    critic_warmup: Natural = 0
    value_clip: float | None = 0.2
    epochs: Positive = 1
    minibatches: Positive = 1

    def __post_init__(self) -> None:
        assert self.terms  # a wrong plug-in or range is an error now, not after the first rollout

    @property
    def terms(self) -> tuple[Term, ...]:
        clip = {key: getattr(self, key) for key in ("clip_low", "clip_high", "dual_clip")}
        spec: Any = {"name": "clipped_surrogate", **clip} if self.loss is None else self.loss
        given = self.correction if isinstance(self.correction, list) else [self.correction]
        weights = tuple(registry.build("correction", one) for one in given if one is not None)
        terms = [
            Term("policy", Corrected(registry.build("loss", spec), weights)),
            Term("value", ValueLoss(self.value_clip), module="critic"),
        ]
        if self.kl_coef != 0:
            terms.append(Term("kl", KLToReference(self.kl), self.kl_coef))
        return tuple(terms)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"ref_logp"} if self.kl_reward != 0 else set())

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        return await run.score(await run.rollout(ticket.tasks, n=self.group_size, key=ticket.key))

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        if not groups:
            return None
        reward_B, _ = rewards_of(groups)
        by_token = ByToken(
            credit=GAE(self.gamma, self.lam, value_at(self.kl_reward, run.step), self.whiten),
            critic_lr=value_at(self.critic_lr, run.step),
            critic_only=run.step < self.critic_warmup,
        )
        return run.fit(
            groups,
            reward_B,
            aggregate=self.aggregate,
            epochs=self.epochs,
            minibatches=self.minibatches,
            by_token=by_token,
        )
