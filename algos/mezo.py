"""MeZO: fine-tuning with just forward passes (Malladi et al., arXiv 2305.17333, algorithm 1).

The loss is measured at `theta + eps z` and `theta - eps z`; their difference over `2 eps` is the slope
along z, and the weights move by minus lr times it along z (SPSA). `objective: loss` is the likelihood
of the tasks' demonstrations, teacher-forced; `objective: reward` needs no derivative to exist: it is
minus the mean reward of answers, and then one step is one antithetic pair of evolution strategies.
Departures: restored from a float32 master instead of subtracted back; noise keyed by parameter name.
Left out: weight decay towards 0, prefix tuning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from algos.es import ES
from rlft.algo import Algo
from rlft.check.by_noise import check_by_noise, check_differ
from rlft.config import Positive
from rlft.errors import DataError, NonFinite
from rlft.learning.noise import Drawing, Noise, NoiseStep, pack
from rlft.schedule import Scheduled, value_at
from rlft.types import Group, Term, Ticket, WeightUpdate

_NONFINITE_BEFORE_STOP = 3


@dataclass(frozen=True)
class MeZO(Algo):
    """objective: what is measured; eps: how far the probes lie from the weights; lr: of the step;
    directions: how many slopes a step averages, two evaluations each."""

    by_noise: ClassVar[bool] = True

    objective: Literal["loss", "reward"] = "loss"
    eps: Scheduled = 1e-3
    lr: Scheduled = 1e-6
    directions: Positive = 1

    def __post_init__(self) -> None:
        check_differ("algo.eps", self.eps)

    @property
    def samples(self) -> bool:  # type: ignore[override]
        """Losses are measured by the learner; rewards need answers."""
        return self.objective == "reward"

    @property
    def terms(self) -> tuple[Term, ...]:
        return ()  # nothing is differentiated

    def suits(self, cfg) -> list[str]:
        return check_by_noise(cfg, 0, perturbs_engines=self.samples)

    def init_state(self) -> int:
        """Steps in a row without a finite loss."""
        return 0

    @property
    def pairs(self) -> ES:
        """The same step on rewards, as evolution strategies see it."""
        return ES(2 * self.directions, self.eps, self.lr, antithetic=True, shaping="raw")

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        if self.samples:
            return await self.pairs.collect(run, ticket)
        groups = await run.demos(ticket.tasks)
        if not groups:
            raise DataError(
                "none of the step's tasks has a demonstration; MeZO on losses needs Task.demos, or "
                "set algo.objective=reward"
            )
        return groups

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        if self.samples:
            return self.pairs.learn(run, groups)
        probes = self.pairs.members(run.key, run.step)
        drawing = Drawing("hashed", run.cfg.model.dtype)
        losses = run.losses(groups, probes, drawing)
        eps, lr = value_at(self.eps, run.step), value_at(self.lr, run.step)
        found = zip(probes[::2], slopes(losses, eps), strict=True)
        slope = [(probe, g) for probe, g in found if math.isfinite(g)]
        lost = self.directions - len(slope)
        flat = not any(g for _, g in slope)
        run.note({"loss/nll": sum(losses) / len(losses), "lr": lr, "es/sigma": eps})
        run.note({"es/flat": float(flat), "es/lost": float(lost)})
        run.state = 0 if slope else run.state + 1
        if run.state >= _NONFINITE_BEFORE_STOP:
            raise NonFinite(
                f"step {run.step + 1}: no loss was finite for {run.state} steps in a row; the last were "
                f"{losses[:4]}. Lower algo.lr or algo.eps."
            )
        if flat:
            return None
        terms = [Noise(probe.seed, -lr / len(slope) * g) for probe, g in slope]
        return run.add_noise(NoiseStep(pack(terms), drawing))


def slopes(losses: Sequence[float], eps: float) -> list[float]:
    """`(L+ - L-) / (2 eps)` of each pair."""
    return [(up - down) / (2 * eps) for up, down in zip(losses[::2], losses[1::2], strict=True)]
