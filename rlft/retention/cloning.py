"""Behavioural cloning beside the objective: near a teacher, or an expert, on states of a fixed buffer.

The buffer is a file of demonstrations of states that the start policy knows and the run may not visit
for long. `target: teacher` is `coef KL(teacher || pi)` on them (arXiv 2402.02868; NetHack there: coef 2
without decay), `actions` the cross-entropy on what was done. Every optimizer step of the run draws anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlft.cloning import RECORDED, strips_of
from rlft.config import Config, Positive
from rlft.errors import ConfigError
from rlft.retention.term import Place, Retention, filled, teacher_fits
from rlft.schedule import Kept
from rlft.types import Term


@dataclass(frozen=True)
class BehaviouralCloning(Retention):
    """path: demonstrations, `.npz`, `.jsonl`, `minari:ID` or recorded games; teacher: a folder with a
    policy, null: the one that the run starts from; size: so many steps of it are kept, null: all (of
    recorded games 20,000, in stretches); batch: of those in each optimizer step. Of a policy with a
    memory: unroll: steps of one window; burn_in: steps before it that only fill the memory. The teacher
    has seen the whole episode by then and the policy those steps, so with weights that are the teacher's
    the loss is 0 but for what both remember of longer ago (some 1e-4 nats with 16 steps of a small GRU)."""

    writing: ClassVar[bool] = False

    path: str
    coef: Kept = 1.0
    target: Literal["teacher", "actions"] = "teacher"
    teacher: str | None = None
    size: Positive | None = None
    batch: Positive = 256
    unroll: Positive = 32
    burn_in: Annotated[int, Field(ge=0)] = 16
    called: str = "behavioural_cloning"

    def term(self) -> Term:
        return Term(self.called, self, self.coef, module="buffer")

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        strips_of(self.path, env, self.size or RECORDED)
        if self.batch < cfg.learner.num:
            raise ConfigError(
                f"retention: behavioural_cloning: batch={self.batch} must be at least learner.num="
                f"{cfg.learner.num}"
            )
        if self.target == "teacher" and self.teacher is not None:
            teacher_fits(self.teacher, env, "retention: behavioural_cloning")

    def prepared(self, place: Place) -> BehaviouralCloning:
        return filled(self, teacher=place.start) if self.target == "teacher" else self

    def __call__(self, out: Any, batch: Any) -> Any:
        """Not called: it learns from states of its own (rlft/learning/buffer.py)."""
        raise NotImplementedError
