"""Kickstarting: near a teacher on the states that the policy itself visits.

`coef KL(teacher || pi)` of each decision of the batch, under the teacher's own recurrent state. Source:
arXiv 1803.03835; in the form of arXiv 2402.02868, whose best run has `coef: {kind: decay, from: 0.75,
factor: 0.99998, floor: 0.33}`. It fails where the teacher does not know the states near the start: there
it teaches what it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from rlft.config import Config
from rlft.losses.teacher import KLToTeacher
from rlft.retention.term import (
    Place,
    Retention,
    filled,
    same_vocabulary,
    teacher_fits,
    teacher_writes,
)
from rlft.schedule import Kept
from rlft.types import Term


@dataclass(frozen=True)
class Kickstarting(Retention):
    """teacher: a folder with a policy or language model, null: the one that the run starts from; top_k: of
    a language model, so many of the teacher's likeliest tokens and the rest as one, 0: all."""

    coef: Kept = 0.5
    teacher: str | None = None
    top_k: Annotated[int, Field(ge=0)] = 0
    called: str = "kickstarting"

    def term(self) -> Term:
        return Term(self.called, KLToTeacher(), self.coef)

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        if self.teacher is not None and acts:
            teacher_fits(self.teacher, env, "retention: kickstarting")
        elif self.teacher is not None:
            teacher_writes(self.teacher, cfg, "retention: kickstarting")

    def prepared(self, place: Place) -> Kickstarting:
        one = filled(self, teacher=place.start)
        if not place.acts:
            same_vocabulary(one.teacher, place.start, "retention: kickstarting")
        return one
