"""Guards: a signal that stays away for some steps in a row is an alert, or ends the run.

A guard looks at the rows of `metrics.jsonl` and at nothing else, so a resumed run knows from the file
how long a signal has been away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlft.record.settings import Guard, Guards

_ADVICE = {
    "flat_groups": (
        "groups whose answers all get the same reward teach nothing: the tasks are too hard or too "
        "easy, or the reward does not tell answers apart"
    ),
    "constant_reward": (
        "every answer of the step got the same reward: look at the reward function, and at "
        "samples.jsonl"
    ),
    "truncated": (
        "nearly every answer is cut off before it ends: raise sampler.max_tokens, or shorten what "
        "is asked for"
    ),
    "entropy": (
        "the policy has stopped exploring: lower learner.lr, or add a KL penalty (algo.kl_coef)"
    ),
}

_METRIC = {
    "flat_groups": "groups/flat",
    "constant_reward": "reward/std",
    "truncated": "completion/truncated",
    "entropy": "entropy",
}


@dataclass(frozen=True, slots=True)
class Alert:
    """A guard's finding at a step. stop: whether it ends the run."""

    step: int
    guard: str
    message: str
    stop: bool

    def row(self) -> dict[str, Any]:
        """A line of `alerts.jsonl`."""
        return {
            "step": self.step,
            "kind": "guard",
            "name": self.guard,
            "stop": self.stop,
            "message": self.message,
        }


class Watch:
    """The guards of a run, and for how many steps each signal has been away."""

    def __init__(self, guards: Guards) -> None:
        self._guards: dict[str, Guard] = {
            name: guard for name in _METRIC if (guard := getattr(guards, name)).action != "ignore"
        }
        self._away = dict.fromkeys(self._guards, 0)

    def step(self, row: Mapping[str, Any]) -> list[Alert]:
        """What the row of a step sets off.

        The alert comes after `steps` rows in a row, and again each time that number has doubled; a
        `stop` comes again after each further `steps`, so that a resumed run gets so many to recover.
        A row without the metric, or of a step that did not sample, neither counts nor interrupts.
        """
        found = []
        for name, guard in self._guards.items():
            value = row.get(_METRIC[name])
            if value is None or "groups" not in row:
                continue
            self._away[name] = self._away[name] + 1 if _is_away(guard, value) else 0
            times, rest = divmod(self._away[name], guard.steps)
            stop = guard.action == "stop"
            if times and not rest and (stop or times & (times - 1) == 0):
                found.append(self._alert(int(row["step"]), name, value, stop))
        return found

    def _alert(self, step: int, name: str, value: float, stop: bool) -> Alert:
        guard = self._guards[name]
        bound = "above" if hasattr(guard, "above") else "below"
        message = (
            f"{_METRIC[name]} is {value:.3g}, {bound} guards.{name}.{bound}="
            f"{getattr(guard, bound):g} for {self._away[name]} steps in a row: {_ADVICE[name]}"
        )
        return Alert(step, name, message, stop)


def _is_away(guard: Guard, value: float) -> bool:
    above = getattr(guard, "above", None)
    return value > above if above is not None else value < getattr(guard, "below")  # noqa: B009
