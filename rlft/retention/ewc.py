"""Elastic weight consolidation, and its trivial case: near the start weights.

`coef sum_i F_i (theta_i - theta*_i)^2`, F the diagonal Fisher of the start policy on states that it
knows, computed once (rlft/retention/fisher.py) and kept with its anchor theta* in one file. Weights that
a critic alone reads are not in the sum. The pull `2 coef F (theta - theta*)` is added to the gradient
after clipping, so that it neither uses up nor is cut by `learner.max_grad_norm`; in arXiv 2402.02868 it is
clipped with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlft import registry
from rlft.config import Config, Positive
from rlft.errors import ConfigError
from rlft.retention.term import Place, Retention, filled
from rlft.schedule import Kept
from rlft.types import Term


@dataclass(frozen=True)
class EWC(Retention):
    """fisher: a file that `python -m rlft.retention.fisher` made, null: it is computed at the run's start,
    from `path`: demonstrations (of a language model: `.jsonl` rows with `text`), of which `states` steps
    (or texts) are drawn; actions: `exact` sums over all actions, `sampled` draws one (a language model
    always does)."""

    coef: Kept = 1.0
    fisher: str | None = None
    path: str | None = None
    states: Positive = 1000
    actions: Literal["exact", "sampled"] = "exact"
    called: str = "ewc"

    def term(self) -> Term:
        return Term(self.called, self, self.coef, module="weights")

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        from rlft.retention.fisher import read_fisher

        if (self.fisher is None) == (self.path is None):
            raise ConfigError(
                f"retention: ewc: give `fisher`, a file made before, or `path`, the states to compute it "
                f"on; got fisher={self.fisher!r}, path={self.path!r}"
            )
        method = registry.build("trainable", cfg.learner.trainable)
        if cfg.model.lora is not None or getattr(method, "adds", False):
            how = "model.lora" if cfg.model.lora is not None else f"learner.trainable={method}"
            raise ConfigError(
                f"retention: ewc weighs the model's own weights, and with {how} only added ones are "
                f"trained; use l2"
            )
        if self.fisher is not None:
            read_fisher(self.fisher)
        elif acts:
            from rlft.cloning import strips_of

            strips_of(str(self.path), env)
        else:
            from rlft.retention.texts import rows_of_text

            rows_of_text(str(self.path))

    def prepared(self, place: Place) -> EWC:
        from rlft.retention.fisher import fits, make_fisher, read_fisher

        if self.fisher is None:
            made = place.folder / "retention" / f"{self.called}.safetensors"
            if not made.is_file():
                make_fisher(self, place, made)
            return filled(self, fisher=made)
        fits(read_fisher(self.fisher), place.start, self.fisher)
        return self

    def __call__(self, out: Any, batch: Any) -> Any:
        """Not called: it is a function of the weights (rlft/learning/anchored.py)."""
        raise NotImplementedError


@dataclass(frozen=True)
class L2(Retention):
    """EWC with F = 1. The anchor is the start weights."""

    coef: Kept = 1.0e-3
    called: str = "l2"

    fisher = None

    def term(self) -> Term:
        return Term(self.called, self, self.coef, module="weights")

    def __call__(self, out: Any, batch: Any) -> Any:
        """Not called: it is a function of the weights (rlft/learning/anchored.py)."""
        raise NotImplementedError
