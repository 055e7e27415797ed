"""TempSamp-R1: the ground truth as one member of the group (arXiv 2509.18056), and its relatives.

GRPO in which some members of each group are not sampled but given: the task's demonstration, or the
beginning of it. Their log-probs are the learner's own (ratio 1 at first), they never meet the
correction between engine and learner, and means of rewards are over sampled answers alone.

The general form has five choices: how many reference rows (`references`), whole or a prefix
(`prefix`), what is learnt from given tokens (`reference_loss`, `sft_coef`: the behaviour probability
and its shaping), which statistics (`stabiliser`), and when (`only_failed`, `phases`). LUFFY, SRFT,
UFT and Prefix-RFT are other values of these (configs/); the last three follow second-hand accounts.
The paper's ablation has the order GRPO 46.0, naive mixing 41.3, shaping 49.6 (R1@0.7, Charades-STA,
7B, video); what comes out here on text alone is in docs/results.md. Left out: an expert's recorded
probabilities, which no data set here has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field

from algos.grpo import GRPO
from rlft import registry
from rlft.config import Natural
from rlft.credit.reads import reads
from rlft.credit.shaping import Credit, Scored, diagnostics
from rlft.errors import ConfigError, DataError
from rlft.filters import drop_flat, drop_short, drop_unneeded, given_numbers, part_of, rewards_of
from rlft.losses.guided import Guided, ReferenceLikelihood
from rlft.prefix import Prefix
from rlft.schedule import Scheduled
from rlft.tasks import in_mode, mode_at
from rlft.types import Group, Guide, Term, Ticket


@dataclass(frozen=True)
class TempSamp(GRPO):
    """references: rows of each group that are given; prefix: only a part of each, which the policy
    continues; stabiliser: joint, downscale, anchor or shape; task_part: the part of the reward that
    shape acts on, null for all of it; reference_loss: on given tokens, null for none; top_entropy:
    share of given tokens it applies to; sft_coef: likelihood of given tokens, beside it; sft_entropy:
    weighted by exp(-entropy); only_failed: give only where no answer earns this much; phases: step
    from which tasks are posed in each of their modes."""

    group_size: Annotated[int, Field(ge=2)] = 4
    references: Natural = 1
    prefix: Prefix | None = None
    stabiliser: str | dict = "shape"
    task_part: str | None = None
    reference_loss: str | dict | None = "ClippedSurrogate"
    top_entropy: float = 1.0
    sft_coef: Scheduled = 0.0
    sft_entropy: bool = False
    only_failed: float | None = None
    phases: dict[str, Natural] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stabilise()
        self._credit_of_rewards()
        if self.refill:
            raise ConfigError(
                "algo.refill is of grpo alone: tempsamp poses no tasks in place of others"
            )
        if self.references > self.group_size:
            raise ConfigError(
                f"algo.references is {self.references}, more than algo.group_size="
                f"{self.group_size}, which counts them"
            )

    def stabilise(self) -> Any:
        """The function from scored rows and a credit to advantages."""
        return registry.build("stabiliser", self.stabiliser)

    @property
    def terms(self) -> tuple[Term, ...]:
        if not self.references:
            return super().terms
        spec = self.reference_loss
        given = None if spec is None else registry.build("loss", spec)
        shared = 1 / self.references if self.prefix else 1.0
        guided = partial(
            Guided, reference=given, prefix_weight=shared, top_entropy=self.top_entropy
        )
        terms = [
            replace(t, fn=guided(policy=t.fn)) if t.name == "policy" else t for t in super().terms
        ]
        if self.sft_coef != 0:
            terms.append(Term("sft", ReferenceLikelihood(self.sft_entropy), self.sft_coef))
        return tuple(terms)

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        mode = mode_at(self.phases, ticket.index)
        tasks = [in_mode(task, mode) for task in ticket.tasks]
        if self.references and not self.phases and not any(task.demos for task in tasks):
            raise DataError(
                "none of the step's tasks has a demonstration to give: set Task.demos, "
                "or algo.references=0"
            )
        places = range(len(tasks))
        shares = tuple(self.prefix.share(ticket, p) if self.prefix else 1.0 for p in places)
        trained = self.reference_loss is not None or self.sft_coef != 0
        guide = Guide(self.references, shares, trained) if self.references else None
        groups = await run.rollout(tasks, n=self.group_size, key=ticket.key, guide=guide)
        groups = drop_short(await run.score(groups))
        if self.only_failed is not None:
            groups = drop_unneeded(groups, self.only_failed)
        if guide:
            run.note(given_numbers(groups))
        return drop_flat(groups, self.metric) if self.drop_flat else groups

    def _advantages(self, run, groups: Sequence[Group]) -> torch.Tensor:
        reward_B, (_, group_B) = self._rewards(run, groups), rewards_of(groups)
        task_B = part_of(groups, self.task_part)
        sampled = [m.origin == "policy" for g in groups for m in g.members]
        sampled_B = torch.tensor(sampled, dtype=torch.bool)
        rows = Scored(task_B, reward_B - task_B, group_B, sampled_B)
        credit = self._credit_of_rewards()
        adv_B = self.stabilise()(rows, credit)
        run.note(diagnostics(rows, adv_B, credit))
        return adv_B

    def _credit_of_rewards(self) -> Credit:
        """The advantage as a stabiliser asks it, of samples alone, say: rewards and groups in."""
        credit = self.credit()
        names = reads(credit)
        if more := [n for n in names if n not in ("reward_B", "group_B")]:
            raise ConfigError(
                f"algo.advantage reads {', '.join(more)}; a stabiliser knows reward_B and group_B "
                f"only. Take another advantage, such as rloo."
            )

        def of_rewards(reward_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
            known = {"reward_B": reward_B, "group_B": group_B}
            adv_B = credit(**{name: known[name] for name in names})
            assert isinstance(adv_B, torch.Tensor)  # what reads no steps gives none
            return adv_B

        return of_rewards
