"""Coefficients as functions of the step: a number, or `{kind: linear, from: 1.0, to: 0.0, steps: 100}`.

Pure, so that a resumed run has the coefficient of an uninterrupted one.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)


class Schedule(BaseModel):
    """From `start` to `end` over `steps`, after `warmup` steps of rising linearly from 0 to `start`.

    After `warmup + steps` it stays at `end`. `linear`, `cosine` (half a period), `exponential`
    (needs both ends positive) and `constant`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    kind: Literal["constant", "linear", "cosine", "exponential"] = "linear"
    start: float = Field(alias="from")
    end: float | None = Field(default=None, alias="to")
    steps: int = Field(default=1, ge=1)
    warmup: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _positive_ends(self) -> Schedule:
        ends = (self.start, self.start if self.end is None else self.end)
        if self.kind == "exponential" and min(ends) <= 0:
            raise ValueError(
                f"an exponential schedule needs positive ends, got {self.start}, {self.end}"
            )
        return self

    def __call__(self, step: int) -> float:
        """The value at `step`, counted from 0."""
        if step < self.warmup:
            return self.start * (step + 1) / (self.warmup + 1)
        end = self.start if self.end is None or self.kind == "constant" else self.end
        share = min(1.0, (step - self.warmup) / self.steps)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        if self.kind == "exponential":
            return self.start * (end / self.start) ** share
        return self.start + (end - self.start) * share


def _kind(value: Any) -> str:
    return "schedule" if isinstance(value, dict | Schedule) else "number"


# With tags, an error is about the one that was meant, not about both.
Scheduled = Annotated[
    Annotated[float, Field(allow_inf_nan=False), Tag("number")]
    | Annotated[Schedule, Tag("schedule")],
    Discriminator(_kind),
]
"""A YAML value that may be a number or a schedule."""


class AdaptiveKL(BaseModel):
    """A coefficient that steers a measured KL: `{kind: adaptive, from: 0.05, target: 0.01}`, in nats.

    After each fit it is multiplied by `1 + gain e`, `e = measured / target - 1` clipped to plus or
    minus 0.2. Source: arXiv 1909.08593, section 2.2 (gain 0.1). Its value is state of the run, saved
    with each checkpoint; this object only knows the rule.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    kind: Literal["adaptive"] = "adaptive"
    start: float = Field(alias="from", gt=0)
    target: float = Field(gt=0)
    gain: float = Field(default=0.1, gt=0, lt=5)

    def after(self, coef: float, measured: float) -> float:
        """The next coefficient. A measurement that is not a number changes nothing."""
        if not math.isfinite(measured):
            return coef
        error = min(max(measured / self.target - 1, -0.2), 0.2)
        return coef * (1 + self.gain * error)


def _kind_of_coef(value: Any) -> str:
    given = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "adaptive" if given == "adaptive" else _kind(value)


Steered = Annotated[
    Annotated[float, Field(allow_inf_nan=False), Tag("number")]
    | Annotated[Schedule, Tag("schedule")]
    | Annotated[AdaptiveKL, Tag("adaptive")],
    Discriminator(_kind_of_coef),
]
"""A YAML value that may be a number, a schedule, or steered by what is measured."""


class Decay(BaseModel):
    """`max(floor, from x factor^n)` after n optimizer steps: `{kind: decay, from: 0.5, factor: 0.99998}`.

    Unlike a schedule it counts optimizer steps of the run, not steps of its loop: a count that a run
    keeps and saves with each checkpoint. Source: kickstarting of arXiv 2402.02868 (section 4.2 of its
    appendix; the released code adds the floor).
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    kind: Literal["decay"] = "decay"
    start: float = Field(alias="from", ge=0)
    factor: float = Field(gt=0, le=1)
    floor: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _falls(self) -> Decay:
        if self.floor > self.start:
            raise ValueError(
                f"a decay falls from `from` to `floor`, got from {self.start:g} and floor {self.floor:g}"
            )
        return self

    def __call__(self, taken: int) -> float:
        """The value after `taken` optimizer steps."""
        return max(self.floor, self.start * self.factor**taken)


def _kind_of_kept(value: Any) -> str:
    given = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "decay" if given == "decay" else _kind(value)


def _never_negative(schedule: Schedule) -> Schedule:
    if min(schedule.start, schedule.end if schedule.end is not None else 0.0) < 0:
        raise ValueError(
            f"a coefficient below 0 pushes away from what is kept: got a schedule from {schedule.start:g} "
            f"to {schedule.end}; both ends must be 0 or more"
        )
    return schedule


Kept = Annotated[
    Annotated[float, Field(ge=0, allow_inf_nan=False), Tag("number")]
    | Annotated[Schedule, AfterValidator(_never_negative), Tag("schedule")]
    | Annotated[Decay, Tag("decay")],
    Discriminator(_kind_of_kept),
]
"""A coefficient of a retention term: a number, a schedule of steps, or a decay by optimizer steps."""


def at_update(coef: float | Decay, taken: int) -> float:
    """The coefficient of the next optimizer step, after `taken` of them."""
    return coef(taken) if isinstance(coef, Decay) else coef


def coef_at(coef: Any, step: int, state: Any = None) -> float | Decay:
    """What a fit after `step` steps is told of a coefficient: its value, but a decay itself."""
    return coef if isinstance(coef, Decay) else value_at(coef, step, state)


def value_at(scheduled: Steered, step: int, state: Any = None) -> float:
    """The value of a number or schedule at `step`; of a steered one, `state["kl_coef"]`."""
    if isinstance(scheduled, AdaptiveKL):
        return float(state["kl_coef"])
    return scheduled(step) if isinstance(scheduled, Schedule) else float(scheduled)
