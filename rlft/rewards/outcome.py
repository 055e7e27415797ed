"""From a reward function's answer to an `Outcome`: a value, invalid with its reason, or an error.

A reward that raised, or answered with anything but a finite number, is an error and stays one: it is
never a reward of 0.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rlft.errors import Invalid
from rlft.types import Outcome, Task

RewardFn = Callable[..., Any]
"""`(completion: str, task: Task) -> float | dict`, or with `trajectory: Attempt` in place of
`completion`; may be async; may raise `rlft.Invalid`."""

_HERE = os.path.dirname(__file__)

_LONGEST_REASON = 4_000
"""Characters kept of a traceback; an exception's message may hold a whole completion."""

_LONGEST_INVALID = 200
"""Characters kept of the reason of an `Invalid`, by which it is counted."""


class _Said(NamedTuple):
    """What one function said: a value with named parts, or why there is none."""

    kind: Literal["value", "invalid", "error"]
    value: float = 0.0
    parts: Mapping[str, float] = {}
    reason: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    reply: str = ""


def score_one(
    fns: Sequence[tuple[str, RewardFn, float]], completion: Any, task: Task, invalid_score: float
) -> Outcome:
    """The outcome of one completion under several `(name, function, weight)`; rewards add up.

    The first that fails decides, and those after it are not called.
    """
    began = time.perf_counter()
    said = []
    for name, fn, _ in fns:
        try:
            said.append(_value(fn(completion, task), name))
        except Invalid as invalid:
            said.append(_invalid(invalid))
        except Exception:  # the boundary where a plug-in's failure becomes data
            said.append(_error(name))
        if said[-1].kind != "value":
            break
    return _combined(fns, said, invalid_score, time.perf_counter() - began)


async def score_async(
    fns: Sequence[tuple[str, RewardFn, float]], completion: Any, task: Task, invalid_score: float
) -> Outcome:
    """`score_one` with functions that may be async: all of them run at the same time."""
    began = time.perf_counter()

    async def ask(name: str, fn: RewardFn) -> _Said:
        try:
            answer = fn(completion, task)
            return _value(await answer if inspect.isawaitable(answer) else answer, name)
        except Invalid as invalid:
            return _invalid(invalid)
        except Exception:  # the same boundary
            return _error(name)

    said = await asyncio.gather(*(ask(name, fn) for name, fn, _ in fns))
    return _combined(fns, said, invalid_score, time.perf_counter() - began)


def _combined(
    fns: Sequence[tuple[str, RewardFn, float]],
    said: Sequence[_Said],
    invalid_score: float,
    seconds: float,
) -> Outcome:
    """The weighted sum of values, or the first failure in the order of the functions."""
    total = 0.0
    parts: dict[str, float] = {}
    steps: list[tuple[int, float]] = []
    for (name, _, weight), one in zip(fns, said, strict=False):  # a failure ends what was said
        if one.kind == "invalid":
            return Outcome("invalid", invalid_score, parts, one.reason, seconds)
        if one.kind == "error":
            return Outcome("error", None, parts, one.reason, seconds, "raised")
        total += weight * one.value
        steps += ((end, weight * value) for end, value in one.steps)
        parts.update(
            one.parts if len(fns) == 1 else {f"{name}/{k}": v for k, v in one.parts.items()}
        )
    if not math.isfinite(total):
        reason = f"the weighted sum of rewards is {total}"
        return Outcome("error", None, parts, reason, seconds, "raised")
    reply = "".join(one.reply for one in said)
    return Outcome("value", total, parts, seconds=seconds, steps=tuple(sorted(steps)), reply=reply)


def _invalid(invalid: Invalid) -> _Said:
    return _Said("invalid", reason=(str(invalid) or "invalid")[:_LONGEST_INVALID])


def _error(name: str) -> _Said:
    """The exception being handled, with its traceback: the last five frames that are not ours."""
    raised = traceback.TracebackException(*sys.exc_info())
    theirs = [frame for frame in raised.stack if os.path.dirname(frame.filename) != _HERE]
    raised.stack = traceback.StackSummary.from_list(theirs[-5:])
    text = "".join(raised.format() if theirs else raised.format_exception_only())
    if len(text) > _LONGEST_REASON:
        half = _LONGEST_REASON // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return _Said("error", reason=f"{name}: {text}")


def _value(answer: Any, name: str) -> _Said:
    """The value and named parts of an answer; raises TypeError or ValueError saying what was wrong."""
    if isinstance(answer, Mapping):
        steps = _steps(answer["steps"], f"{name}['steps']") if "steps" in answer else ()
        reply = answer.get("reply", "")
        if not isinstance(reply, str):
            raise TypeError(f"{name}['reply'] is {reply!r:.80}; expected text")
        named = {k: v for k, v in answer.items() if k not in ("steps", "reply")}
        parts = {str(k): _number(v, f"{name}[{k!r}]") for k, v in named.items()}
        if not parts:
            raise ValueError(f"{name} returned an empty dict; expected parts, or a 'reward'")
        if "reward" in parts:
            rest = {k: v for k, v in parts.items() if k != "reward"}
            return _Said("value", parts["reward"], rest, steps=steps, reply=reply)
        return _Said("value", sum(parts.values()), parts, steps=steps, reply=reply)
    return _Said("value", _number(answer, name))


def _steps(value: Any, what: str) -> tuple[tuple[int, float], ...]:
    """Pairs (characters up to the step's end, its reward), as plain numbers."""
    pairs = []
    for pair in value:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], int)):
            raise TypeError(f"{what} holds {pair!r}; expected pairs (end of the step, its reward)")
        if pair[0] < 1:
            raise ValueError(f"{what}: a step ends after {pair[0]} characters; expected 1 or more")
        pairs.append((pair[0], _number(pair[1], what)))
    return tuple(pairs)


def _number(value: Any, what: str) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(
            f"{what} returned {type(value).__name__} {str(value)[:80]!r}; expected a number"
        )
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{what} returned {number}; expected a finite number")
    return number
