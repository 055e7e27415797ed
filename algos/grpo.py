"""GRPO: group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300, section 4.1).

Sample a group of answers per task; an answer's advantage is its reward against the group's; take
clipped policy-gradient steps. With its later variants as fields: Dr. GRPO (2503.20783) is
`std: none, aggregate: constant`; DAPO's clip-higher and token loss (2503.14476) are `clip_high: 0.28`
and `aggregate: token`. Beyond the paper: truncated importance sampling between engine and learner
(`correction_cap`), because they never agree to the last bit. Left out: process rewards, DAPO's refill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlft import registry
from rlft.algo import Algo
from rlft.config import Positive
from rlft.filters import drop_flat, drop_short, rewards_of
from rlft.losses import ClippedSurrogate, KLToReference, TokenTruncate
from rlft.schedule import Scheduled
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class GRPO(Algo):
    """group_size: answers per task; std: divide by the group's, the batch's, or no deviation;
    aggregate: mean over tokens, over answers, or by a constant length; kl_coef: 0 needs no reference;
    correction_cap: largest engine-to-learner weight, null for none; loss: replaces the clipped
    surrogate by a plug-in; advantage: replaces the group-relative one."""

    max_staleness: ClassVar[int] = (
        1_000  # the correction weighs each token by the version that drew it
    )

    group_size: Annotated[int, Field(ge=2)] = 8
    advantage: str | dict | None = None
    std: Literal["group", "batch", "none"] = "group"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregate: Literal["token", "sequence", "constant"] = "token"
    kl_coef: Scheduled = 0.0
    kl: Literal["k1", "k2", "k3"] = "k3"
    correction_cap: float | None = 2.0
    drop_flat: bool = True
    epochs: Positive = 1
    minibatches: Positive = 1
    loss: str | dict | None = None

    def __post_init__(self) -> None:
        self.credit()  # a wrong plug-in or range is an error now, not after the first rollout
        _ = self.terms

    def credit(self) -> Any:
        """The function from rewards and group ids to advantages."""
        return registry.build(
            "advantage", self.advantage or {"name": "group_relative", "std": self.std}
        )

    @property
    def terms(self) -> tuple[Term, ...]:
        cap = self.correction_cap
        clipped = ClippedSurrogate(
            self.clip_low,
            self.clip_high,
            self.dual_clip,
            None if cap is None else TokenTruncate(cap),
        )
        policy = Term("policy", clipped if self.loss is None else registry.build("loss", self.loss))
        if self.kl_coef == 0:
            return (policy,)
        return (policy, Term("kl", KLToReference(self.kl), self.kl_coef))

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        groups = await run.score(await run.rollout(ticket.tasks, n=self.group_size, key=ticket.key))
        groups = drop_short(groups)
        return drop_flat(groups) if self.drop_flat else groups

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        adv = self.credit()(*rewards_of(groups))
        return run.fit(
            groups, adv, aggregate=self.aggregate, epochs=self.epochs, minibatches=self.minibatches
        )
