"""Polychromic PPO: a set of episodes is good if it earns *and* differs (arXiv 2509.25424).

From each configuration come seed trajectories; from equally spaced states of each, vines. The vines of
a state form sets that score mean return times diversity, and a set's advantage is given to the first
steps of its vines; every other step has GAE. So an episode that fails in a new way can be worth more
than one more success on the way that all take, and a pretrained policy keeps its ways of solving things.

Where sources disagree: sets that share a vine add up; the baseline is the mean of all sets (`loo`: of
the others); the vines' own actions are credited, not the seed's; the critic's target is GAE's everywhere;
returns in scores are not discounted, whatever `gamma`.
With `rollout_states: 0` it is `control_ppo` with `unit: episode`, bit for bit. Left out: training on
seeds alone with set advantages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from rlft import registry
from rlft.algo import Algo
from rlft.config import Config, Natural, Positive
from rlft.credit.decision import GAE
from rlft.credit.overlay import Overlay
from rlft.credit.sets import normalised, polychromic
from rlft.diversity import VINE_START, require_traces
from rlft.errors import ConfigError
from rlft.losses.acting import acting_terms
from rlft.losses.surrogate import ClippedSurrogate
from rlft.schedule import Scheduled, value_at
from rlft.types import Episode, Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class Polychromic(Algo):
    """seeds: trajectories from each configuration; rollout_states: p, states of each that vines leave
    from; vines: N, episodes from each; set_size: n; sets: M; window: W, steps after the first that carry
    the set's advantage; diversity: a plug-in; return_range: what returns lie between; baseline: of
    scores; ucb: weight of a bonus for steps seldom taken; whiten: advantages to deviation 1, of each of
    the two kinds by itself; the others as in control_ppo."""

    acts: ClassVar[bool] = True

    seeds: Positive = 8
    rollout_states: Natural = 2
    vines: Positive = 8
    set_size: Annotated[int, Field(ge=2)] = 4
    sets: Positive = 4
    window: Natural = 5
    diversity: str | dict = "rooms"
    return_range: tuple[float, float] = (0.0, 1.0)
    baseline: Literal["mean", "loo"] = "mean"
    ucb: Scheduled = 0.0
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    clip: Annotated[float, Field(gt=0, le=1)] = 0.2
    value_clip: float | None = None
    value_coef: Scheduled = 0.5
    entropy_coef: Scheduled = 0.0
    kl_coef: Scheduled = 0.01
    whiten: bool = False
    critic_lr: Scheduled | None = None
    critic_only: Natural = 0
    epochs: Positive = 2
    minibatches: Positive = 16

    def __post_init__(self) -> None:
        if self.vines <= self.set_size or self.sets < 2:
            raise ConfigError(
                f"algo.vines={self.vines}, algo.set_size={self.set_size} and algo.sets={self.sets} leave "
                f"no two sets to compare, so that every advantage were 0: vines has to be above set_size, "
                f"and sets at least 2"
            )
        normalised([], *self.return_range)
        registry.build("diversity", self.diversity)

    @property
    def terms(self) -> tuple[Term, ...]:
        return acting_terms(
            ClippedSurrogate(self.clip, self.clip),
            value_clip=self.value_clip,
            value_coef=self.value_coef,
            entropy_coef=self.entropy_coef,
            kl_coef=self.kl_coef,
        )

    def suits(self, cfg: Config) -> list[str]:
        env = registry.build("env", cfg.env)
        if not self.rollout_states:
            return []
        if getattr(env, "snapshots", "copy") == "none":
            raise ConfigError(
                "vines begin in the middle of an episode, but env.snapshots is none: it cannot be put "
                "back there; set it to copy or replay, or algo.rollout_states to 0"
            )
        require_traces(registry.build("diversity", self.diversity), getattr(env, "traces", ()))
        return []

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        found = await run.vines(
            ticket.tasks,
            seeds=self.seeds,
            states=self.rollout_states,
            vines=self.vines,
            key=ticket.key,
        )
        return [group for one in found for group in (one.roots, *one.families)]

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        number: list[float] = []
        scores: list[np.ndarray] = []
        rng = np.random.default_rng(run.key.child("sets", run.step).seed())
        for group in groups:
            episodes = [m.episode for m in group.members if m.episode is not None]
            if episodes and episodes[0].branch >= 0:
                found = self._of_family(episodes, rng, scores)
            else:
                found = [float("nan")] * len(episodes)
            number += found
        if scores:
            flat = np.concatenate(scores)
            run.note(
                {
                    "sets/score": float(flat.mean()),
                    "sets/zero": float((flat == 0).mean()),
                    "sets/same": float(np.mean([np.ptp(s) == 0 for s in scores])),
                }
            )
        return run.fit(
            groups,
            number,
            credit=Overlay(GAE(self.gamma, self.lam, whiten=False), self.window, self.whiten),
            epochs=self.epochs,
            minibatches=self.minibatches,
            critic_lr=None if self.critic_lr is None else value_at(self.critic_lr, run.step),
            ucb=value_at(self.ucb, run.step),
            critic_only=run.step < self.critic_only,
        )

    def _of_family(
        self, episodes: Sequence[Episode], rng: np.random.Generator, scores: list[np.ndarray]
    ) -> list[float]:
        """The advantage of each vine of a state, NaN where it failed or is in no set."""
        whole = [i for i, e in enumerate(episodes) if e.end != "error"]
        number = [float("nan")] * len(episodes)
        if len(whole) <= self.set_size:  # all sets are the same
            return number
        returns = normalised([episodes[i].ret_after for i in whole], *self.return_range)
        traces = [{**episodes[i].traces, VINE_START: np.array([episodes[i].start])} for i in whole]
        diversity = registry.build("diversity", self.diversity)
        found, score = polychromic(
            *(returns, traces, diversity, rng),
            size=self.set_size,
            sets=self.sets,
            baseline=self.baseline,
        )
        scores.append(score)
        for i, value in zip(whole, found, strict=True):
            number[i] = float(value)
        return number
