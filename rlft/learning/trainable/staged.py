"""Staged unfreezing: more of the model is trained from given steps on, as in ULMFiT (arXiv 1801.06146)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rlft.errors import ConfigError
from rlft.learning.trainable.patterns import matching
from rlft.learning.trained_part import Seen, Trainable


@dataclass(frozen=True)
class Staged(Trainable):
    """stages: optimizer step -> regular expressions of names that are trained from then on, e.g.
    `{0: [lm_head], 100: ["layers\\.1\\."]}`; what no stage names is never trained."""

    stages: dict[int, tuple[str, ...]]
    chooses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if 0 not in self.stages or min(self.stages) < 0:
            raise ConfigError(
                f"stages begin at {sorted(self.stages)}; one of them must be 0, none before it"
            )

    def prepared(self, lm: Any, seed: int) -> Any:
        named = dict(lm.named_parameters())
        every = tuple(p for patterns in self.stages.values() for p in patterns)
        ever = matching(every, list(named), "learner.trainable.stages")
        for name, parameter in named.items():
            parameter.requires_grad_(name in ever)
        return lm

    def due(self, step: int) -> bool:
        return step in self.stages

    def kept(self, name: str, seen: Seen) -> bool:
        now = tuple(p for step, ps in self.stages.items() if step <= seen.step for p in ps)
        return bool(matching(now, list(seen.shapes), "learner.trainable.stages") & {name})
