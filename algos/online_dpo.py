"""Online DPO: the best and the worst of each sampled group are a pair (arXiv 2402.04792, with a reward in
the place of the annotator).

Sample a group of answers per task, score them, and take a step of the pair loss on the two ends. Groups
whose rewards are all equal hold no pair. Left out: other choices of pairs, such as every two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from algos.dpo import DPO
from rlft.filters import drop_short
from rlft.pairing import best_and_worst, comparable
from rlft.types import Group, Ticket


@dataclass(frozen=True)
class OnlineDPO(DPO):
    """group_size: answers per task, of which two are learnt from; the other keys are those of dpo."""

    samples: ClassVar[bool] = True

    group_size: Annotated[int, Field(ge=2)] = 4

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        groups = await run.rollout(ticket.tasks, n=self.group_size, key=ticket.key)
        pairs, left_out = comparable(best_and_worst(drop_short(await run.score(groups))))
        run.note(left_out)
        return pairs
