"""From a reward function's answer to an `Outcome`: a value, invalid with its reason, or an error.

A reward that raised, or answered with anything but a finite number, is an error and stays one: it is
never a reward of 0.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlft.errors import Invalid
from rlft.types import Outcome, Task

RewardFn = Callable[..., Any]
"""`(completion: str, task: Task) -> float | dict[str, float]`; may raise `rlft.Invalid`."""


def score_one(
    fns: Sequence[tuple[str, RewardFn, float]], completion: str, task: Task, invalid_score: float
) -> Outcome:
    """The outcome of one completion under several `(name, function, weight)`; rewards add up."""
    began = time.perf_counter()
    total = 0.0
    parts: dict[str, float] = {}
    for name, fn, weight in fns:
        try:
            answer = fn(completion, task)
            value, named = _checked(answer, name)
        except Invalid as invalid:
            reason = str(invalid) or "invalid"
            spent = time.perf_counter() - began
            return Outcome("invalid", invalid_score, parts, reason, spent)
        except Exception:  # the boundary where a plug-in's failure becomes data
            spent = time.perf_counter() - began
            return Outcome("error", None, parts, f"{name}: {traceback.format_exc(limit=-5)}", spent)
        total += weight * value
        parts.update(named if len(fns) == 1 else {f"{name}/{k}": v for k, v in named.items()})
    spent = time.perf_counter() - began
    if not math.isfinite(total):
        return Outcome("error", None, parts, f"the weighted sum of rewards is {total}", spent)
    return Outcome("value", total, parts, seconds=spent)


def _checked(answer: Any, name: str) -> tuple[float, dict[str, float]]:
    """(reward, named parts) of an answer; raises TypeError or ValueError saying what was wrong."""
    if isinstance(answer, Mapping):
        parts = {str(k): _number(v, f"{name}[{k!r}]") for k, v in answer.items()}
        if not parts:
            raise ValueError(f"{name} returned an empty dict; expected parts, or a 'reward'")
        if "reward" in parts:
            return parts["reward"], {k: v for k, v in parts.items() if k != "reward"}
        return sum(parts.values()), parts
    return _number(answer, name), {}


def _number(value: Any, what: str) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(
            f"{what} returned {type(value).__name__} {str(value)[:80]!r}; expected a number"
        )
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{what} returned {number}; expected a finite number")
    return number
