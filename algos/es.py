"""Evolution strategies: fine-tuning without a backward pass (Qiu et al., arXiv 2509.24372).

A generation scores a population of perturbed policies on the same tasks, and moves the weights along
each member's noise by its z-scored reward: `theta += lr / N * sum_i Z_i eps_i` (no 1/sigma: it is
absorbed in lr). `rank` perturbs by matrices of that rank, many members in one batch (EGGROLL,
2511.16652). Departures: noise is keyed by parameter name, restored from a float32 master and added up
in float32; `noise: shared` repeats the paper's noise. Beyond the paper: antithetic pairs, centred
ranks, schedules, decay to the start weights (2605.30148). Left out: momentum, adaptive sigma.
configs/es_smollm2.yaml has the paper's N, sigma and lr.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from rlft.algo import Algo
from rlft.check.by_noise import check_by_noise, check_decay, check_differ
from rlft.config import Natural, Positive
from rlft.credit.evolution import (
    Ratchet,
    Shaping,
    fitness_numbers,
    lost_members,
    member_rewards,
    merged,
    shaped,
    whole_pairs,
)
from rlft.errors import ConfigError
from rlft.learning.noise import Drawing, Mode, Noise, NoiseStep, pack
from rlft.schedule import Scheduled, value_at
from rlft.seeding import Key
from rlft.types import Group, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class ES(Algo):
    """population: members of a generation; sigma: of the noise; lr: of the step; rank: of the noise, 0
    full; antithetic: members in pairs of opposite noise; shaping: of rewards; greedy: how members
    answer; decay: `lr x decay` is the step of the decay to the start weights, of norm decay_norm;
    noise: how it is drawn; together: low-rank members in one batch; update: how engines get the new
    weights, auto is `seeds` on GPUs and `weights` on CPUs, where redrawing costs more than a reload;
    ratchet: after so many evaluations in a row below the best, its weights and half the lr; 0: never."""

    by_noise: ClassVar[bool] = True

    population: Annotated[int, Field(ge=2)] = 30
    sigma: Scheduled = 1e-3
    lr: Scheduled = 5e-4
    rank: Natural = 0
    antithetic: bool = False
    shaping: Shaping = "zscore"
    greedy: bool = True
    decay: Annotated[float, Field(ge=0)] = 0.0
    decay_norm: Literal["l2", "l1"] = "l2"
    noise: Mode = "hashed"
    together: Positive = 16
    update: Literal["auto", "seeds", "weights"] = "auto"
    ratchet: Natural = 0

    def __post_init__(self) -> None:
        check_differ("algo.sigma", self.sigma)
        if self.decay_norm == "l2":
            check_decay(self.lr, self.decay)
        if self.antithetic and self.population % 2:
            raise ConfigError(
                f"algo.population is {self.population}, but algo.antithetic needs pairs: an even number"
            )
        if self.rank and self.noise != "hashed":
            raise ConfigError(
                f"algo.noise={self.noise} is of full rank; use algo.rank=0, or noise=hashed"
            )

    @property
    def terms(self) -> tuple[Term, ...]:
        return ()  # nothing is differentiated

    def suits(self, cfg) -> list[str]:
        return check_by_noise(cfg, self.rank, compares=self.ratchet > 0)

    def init_state(self) -> Ratchet | None:
        return Ratchet() if self.ratchet else None

    def drawing(self, dtype: str) -> Drawing:
        """How this run's seeds become noise."""
        return Drawing(self.noise, dtype, self.rank)

    def members(self, key: Key, step: int) -> list[Noise]:
        """The members of generation `step`; in pairs of opposite noise if `antithetic`."""
        sigma, of, pair = value_at(self.sigma, step), key.child("generation", step), self.antithetic
        return [
            Noise(of.child(i // 2 if pair else i).seed(64), -sigma if pair and i % 2 else sigma)
            for i in range(self.population)
        ]

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        members = self.members(run.key, ticket.index)
        groups = await self._scored(run, ticket, members, range(self.population))
        lost = lost_members(groups, self.population)
        if lost:  # redone once; the same answers, so this helps where the reward failed by accident
            run.note({"es/redone": len(lost)})
            groups = merged(groups, await self._scored(run, ticket, members, lost, again=True))
        return groups

    async def _scored(
        self,
        run,
        ticket: Ticket,
        members: Sequence[Noise],
        which: Sequence[int],
        again: bool = False,
    ) -> list[Group]:
        groups = await run.population(
            ticket.tasks,
            {i: members[i] for i in which},
            self.drawing(run.cfg.model.dtype),
            key=ticket.key,
            greedy=self.greedy,
            together=self.together if self.rank else 1,
        )
        return await run.score(groups, again=again)

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        rewards = member_rewards(groups, self.population)
        if self.antithetic and self.shaping == "raw":  # a slope needs both of its sides
            rewards = whole_pairs(rewards)
        known = [i for i, r in enumerate(rewards) if r is not None]
        fitness = np.array([rewards[i] for i in known], np.float64)
        weights = shaped(fitness, self.shaping)
        flat = not weights.any()
        run.note(fitness_numbers(fitness, self.population))
        lr, sigma = value_at(self.lr, run.step), value_at(self.sigma, run.step)
        if self.ratchet:
            rows = run.records.evaluations()
            # An evaluation whose rewards all failed has no mean.
            means = [r["eval/reward/mean"] for r in rows if "eval/reward/mean" in r]
            run.state, todo = run.state.after(means, self.ratchet)
            if todo == "recall":
                run.note({"es/recalled": 1.0})
                return run.recall_best()
            if todo == "keep":
                run.keep_best()
            lr *= run.state.scale
        run.note({"es/sigma": sigma, "lr": lr, "es/flat": float(flat)})
        if flat and not self.decay:
            return None
        members = self.members(run.key, run.step)
        scale = lr / max(1, len(known)) / (sigma if self.shaping == "raw" else 1.0)
        terms = [
            Noise(members[i].seed, scale * float(w) * np.sign(members[i].scale))
            for i, w in zip(known, weights, strict=True)
            if w != 0
        ]
        by_seeds = self.update == "seeds" or (self.update == "auto" and run.cfg.learner.gpus > 0)
        drawing, decay = self.drawing(run.cfg.model.dtype), lr * self.decay
        return run.add_noise(NoiseStep(pack(terms), drawing, decay, self.decay_norm, by_seeds))
