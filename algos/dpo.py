"""DPO: direct preference optimisation (arXiv 2305.18290), and its relatives on given pairs.

The chosen response of each pair is made likelier against the rejected one, both measured against the
reference, the policy before training. IPO (2310.12036) is `loss: ipo`. A pair of equal texts, or one
with a text that does not fit, is left out and counted. Left out: label-free terms beside the pair loss
but one (`sft_coef`, the likelihood of the chosen response, as in RPO, 2404.19733), and unpaired data.
The same on the best and worst of sampled groups is algos/online_dpo.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from rlft import registry
from rlft.algo import Algo
from rlft.config import Natural, Positive
from rlft.losses.pairs import ChosenLikelihood, PairLoss
from rlft.pairing import as_pairs, comparable, strengths
from rlft.schedule import Scheduled
from rlft.types import Group, Task, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class DPO(Algo):
    """loss: plug-in, dpo or ipo; beta: how hard the reference holds; sft_coef: likelihood of the chosen
    response, beside it; held_out_every: steps between measuring the held-out pairs, and after the last
    one, 0 for never; epochs, minibatches: passes over each step's pairs, and updates in each."""

    samples: ClassVar[bool] = False

    loss: str | dict = "dpo"
    beta: Annotated[float, Field(gt=0)] = 0.1
    sft_coef: Scheduled = 0.0
    held_out_every: Natural = 0
    epochs: Positive = 1
    minibatches: Positive = 1

    def __post_init__(self) -> None:
        self.terms  # noqa: B018  (a wrong plug-in is an error now)

    @property
    def terms(self) -> tuple[Term, ...]:
        pair = Term("pairs", PairLoss(registry.build("preference", self.loss), self.beta))
        if self.sft_coef == 0:
            return (pair,)
        return (pair, Term("sft", ChosenLikelihood(), self.sft_coef))

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        return await given(run, as_pairs(ticket.tasks))

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        if not groups:
            return None
        update = fit_pairs(run, groups, self.epochs, self.minibatches)
        run.note(held_out_numbers(run, self.held_out_every))
        return update


async def given(run, pairs: list[Task]) -> list[Group]:
    """The responses of pairs that say something; those left out are counted."""
    kept, left_out = comparable(await run.demos(pairs))
    run.note(left_out)
    return kept


def fit_pairs(run, groups: list[Group], epochs: int, minibatches: int) -> WeightUpdate | None:
    """Optimizer steps on pairs that are never split."""
    keys = {"epochs": epochs, "minibatches": minibatches, "together": True}
    return run.fit(groups, strengths(groups), aggregate="sequence", **keys)


def held_out_numbers(run, every: int) -> dict[str, float]:
    """`held_out/...` of the pairs that are not trained on, when it is their turn; else nothing."""
    step = run.step + 1
    if not every or not run.held_out or (step % every and step < run.cfg.steps):
        return {}
    pairs, _ = comparable(run.demos(as_pairs(run.held_out)))
    if not pairs:
        return {}
    numbers = run.measure(pairs, strengths(pairs), aggregate="sequence", together=True)
    return {f"held_out/{n}": v for n, v in numbers.items() if n.startswith(("pairs/", "loss/"))}
