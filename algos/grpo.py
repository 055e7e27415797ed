"""GRPO: group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300, section 4.1).

Sample a group of answers per task; an answer's advantage is its reward against the group's; take
clipped policy-gradient steps. The family hangs on four keys: `advantage`, `loss`, `kl` and
`correction` (docs/choose-a-loss.md). Dr. GRPO (2503.20783) is `std: none, aggregate: constant`; DAPO
(2503.14476) is `clip_high: 0.28, refill: N, overlong_buffer: N, drop_truncated: true`. Beyond the
paper: a correction between engine and learner, because they never agree to the last bit. Rewards of
single steps (section 4.1.3) are `advantage: process, drop_flat: false`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from rlft import registry
from rlft.algo import Algo
from rlft.config import Natural, Positive
from rlft.credit.overlong import soft_overlong
from rlft.credit.reads import Advantage, advantages, members_needed, reads, refuse_small_groups
from rlft.credit.steps import StepAdvantages
from rlft.errors import ConfigError
from rlft.filters import drop_flat, drop_short, drop_truncated, members_of, rewards_of
from rlft.losses.corrected import Corrected
from rlft.losses.kl import Estimator, KLToReference
from rlft.schedule import AdaptiveKL, Steered
from rlft.seeding import Key
from rlft.types import Group, Task, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class GRPO(Algo):
    """group_size: answers per task; advantage, loss: plug-ins, null for the group-relative advantage
    and the clipped surrogate; std: divide by the group's, the batch's, or no deviation; clip_low,
    clip_high, dual_clip: of the clipped surrogate; aggregate: mean over tokens, over answers, or by a
    constant length, null for what the loss asks for; kl_coef: 0 needs no reference; correction:
    weights between engine and learner, one or a list, null for none; drop_flat: leave out groups
    whose rewards (or whose part `metric`) are all equal; refill: up to so many rounds of new tasks in
    their place; overlong_buffer: tokens before the longest answer over which the reward falls by
    overlong_penalty, 0 for no such penalty; drop_truncated: do not learn from answers cut off."""

    max_staleness: ClassVar[int] = (
        1_000  # the correction weighs each token by the version that drew it
    )

    group_size: Annotated[int, Field(ge=2)] = 8
    advantage: str | dict | None = None
    std: Literal["group", "batch", "none"] = "group"
    loss: str | dict | None = None
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregate: Literal["token", "sequence", "constant"] | None = None
    kl_coef: Steered = 0.0
    kl: Estimator = "k3"
    correction: str | dict | list[str | dict] | None = "token_truncate"
    drop_flat: bool = True
    metric: str | None = None
    refill: Natural = 0
    overlong_buffer: Natural = 0
    overlong_penalty: float = 1.0
    drop_truncated: bool = False
    epochs: Positive = 1
    minibatches: Positive = 1

    def __post_init__(self) -> None:
        # A wrong plug-in or range is an error now, not after the first rollout.
        reads(self.credit())
        refuse_small_groups(self.credit(), self.group_size)
        policy = self.terms[0].fn
        if self.aggregate is None:
            object.__setattr__(self, "aggregate", getattr(policy, "aggregate", "token"))
        if self.refill and not self.drop_flat:
            raise ConfigError("algo.refill replaces flat groups, but algo.drop_flat is false")

    def credit(self) -> Advantage:
        """The function from what it reads of the groups to advantages."""
        if self.advantage is None:
            return registry.build("advantage", {"name": "group_relative", "std": self.std})
        self._refuse("advantage", "std")
        return registry.build("advantage", self.advantage)

    @property
    def terms(self) -> tuple[Term, ...]:
        own = ("clip_low", "clip_high", "dual_clip")
        spec: str | dict = {"name": "clipped_surrogate", **{key: getattr(self, key) for key in own}}
        if self.loss is not None:
            self._refuse("loss", *own)
            spec = self.loss
        given = self.correction if isinstance(self.correction, list) else [self.correction]
        weights = tuple(registry.build("correction", one) for one in given if one is not None)
        policy = Term("policy", Corrected(registry.build("loss", spec), weights))
        if self.kl_coef == 0:
            return (policy,)
        return (policy, Term("kl", KLToReference(self.kl), self.kl_coef))

    def init_state(self) -> Any:
        return {"kl_coef": self.kl_coef.start} if isinstance(self.kl_coef, AdaptiveKL) else None

    def next_state(self, state: Any, metrics: Mapping[str, float]) -> Any:
        if not isinstance(self.kl_coef, AdaptiveKL):
            return state
        return {"kl_coef": self.kl_coef.after(state["kl_coef"], metrics["loss/kl"])}

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        groups = await self._sampled(run, ticket.tasks, ticket.key)
        drawn = 0
        for again in range(self.refill):
            missing = range(drawn, drawn + len(ticket.tasks) - len(groups))
            if missing:
                assert ticket.spare is not None  # whoever deals tickets fills it
                tasks = [ticket.spare(place) for place in missing]
                key = ticket.key.child("refill", f"{ticket.index}r{again}")
                groups += await self._sampled(run, tasks, key)
                drawn = missing.stop
        return groups

    async def _sampled(self, run, tasks: Sequence[Task], key: Key) -> list[Group]:
        least = members_needed(self.credit())
        groups = await run.rollout(tasks, n=self.group_size, key=key)
        groups = drop_short(await run.score(groups, least), least)
        return drop_flat(groups, self.metric) if self.drop_flat else groups

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        if not groups:
            return None
        adv = self._advantages(run, groups)
        if self.drop_truncated:
            groups, adv = drop_truncated(groups, adv)
        return run.fit(
            groups, adv, aggregate=self.aggregate, epochs=self.epochs, minibatches=self.minibatches
        )

    def _advantages(self, run, groups: Sequence[Group]) -> torch.Tensor | StepAdvantages:
        return advantages(self.credit(), groups, self._rewards(run, groups))

    def _rewards(self, run, groups: Sequence[Group]) -> torch.Tensor:
        """The members' rewards `[B]`, less what too long an answer costs."""
        reward_B, _ = rewards_of(groups)
        if not self.overlong_buffer:
            return reward_B
        length_B = reward_B.new_tensor([m.num_tokens for m in members_of(groups)[0]])
        longest = run.cfg.sampler.max_tokens
        return reward_B + soft_overlong(
            length_B, longest, self.overlong_buffer, self.overlong_penalty
        )

    def _refuse(self, plugin: str, *keys: str) -> None:
        """A key of the default plug-in is not read by another one: that is said, not overlooked."""
        defaults = {f.name: f.default for f in fields(GRPO)}
        for key in keys:
            if getattr(self, key) != defaults[key]:
                raise ConfigError(
                    f"algo.{key} belongs to the default {plugin}, but algo.{plugin} names another; "
                    f"write {plugin}: {{name: ..., {key}: {getattr(self, key)}}} if it has that key."
                )
