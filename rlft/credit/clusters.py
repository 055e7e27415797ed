"""Which answers of a group follow the same strategy: the plug-ins of `poly_epo`'s key `cluster`.

Each maps `(texts, task)`, the answers of one group and their task, to one whole number an answer;
equal numbers are one strategy, a negative one is degenerate and adds no strategy. Pure but for `judge`.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from rlft import registry
from rlft.errors import ConfigError, PluginError
from rlft.types import Task

Cluster = Callable[[Sequence[str], Task], Sequence[int]]

__all__ = ["answer", "embedding", "equations", "judge", "text"]

_NUMBER = r"-?\d+(?:\.\d+)?"
_EQUATION = re.compile(r"([-+*/(). \d]*\d[-+*/(). \d]*)=\s*(" + _NUMBER + ")")
_PROMPT = (
    "Here are {count} answers to one problem, numbered from 1. Answers that follow the same strategy "
    "belong together, whatever their wording; so do not look at whether they are right. Reply with one "
    "line of {count} whole numbers, separated by spaces: for each answer the number of its strategy, "
    "or -1 for text that is no answer at all.\n\nProblem:\n{problem}\n\n{answers}"
)


def text(texts: Sequence[str], task: Task) -> list[int]:
    """Equal texts are one strategy, an empty one is degenerate."""
    return _numbered([t.strip() or None for t in texts])


def answer(texts: Sequence[str], task: Task, *, pattern: str = _NUMBER) -> list[int]:
    """Equal final answers are one strategy: the last match of the regular expression `pattern` (its
    first group, if it has one); without a match, degenerate."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"cluster answer: pattern {pattern!r} is no expression: {error}"
        ) from None
    found = [list(compiled.finditer(t)) for t in texts]
    return _numbered([m[-1][1 if compiled.groups else 0] if m else None for m in found])


def equations(texts: Sequence[str], task: Task, *, operators: bool = False) -> list[int]:
    """Equal ordered lists of equations (`3 + 4 = 7`, also in `<<3+4=7>>`) are one strategy; without an
    equation, degenerate. operators: only the operators count, not the numbers."""

    def key(one: str) -> tuple[str, ...] | None:
        sides = [re.sub(r"\s", "", f"{m[1]}={m[2]}") for m in _EQUATION.finditer(one)]
        if operators:
            sides = [re.sub(r"[^-+*/]", "", side.split("=")[0]) for side in sides]
        return tuple(sides) or None

    return _numbered([key(t) for t in texts])


def embedding(
    texts: Sequence[str],
    task: Task,
    *,
    threshold: float = 0.8,
    embed: str | None = None,
    width: int = 3,
) -> list[int]:
    """Answers whose embeddings have a cosine of at least `threshold` with a strategy's first answer
    belong to it. embed: a plug-in from texts to as many vectors; None: hashed counts of `width`
    characters each, which needs no model. An empty text, or a vector of 0, is degenerate."""
    if not -1 <= threshold <= 1 or width < 1:
        raise ConfigError(
            f"cluster embedding: threshold must lie in [-1, 1] and width be at least 1, got "
            f"{threshold}, {width}"
        )
    if embed is None:
        vectors = [_ngrams(t.strip(), width) for t in texts]
    else:
        vectors = [dict(enumerate(map(float, v))) for v in registry.resolve("embed", embed)(texts)]
    leaders: list[dict[int, float]] = []
    ids = []
    for vector in vectors:
        if not any(vector.values()):
            ids.append(-1)
            continue
        near = [_cosine(vector, leader) for leader in leaders]
        if not near or max(near) < threshold:
            leaders.append(vector)
            near.append(1.0)
        ids.append(near.index(max(near)))
    return ids


def judge(texts: Sequence[str], task: Task, *, ask: str | None = None) -> list[int]:
    """What a language model says. ask: a plug-in from a prompt to the model's reply, text to text.

    Raises PluginError: a reply that is not one number an answer; it is never guessed.
    """
    if ask is None:
        raise ConfigError("cluster judge needs `ask: file.py:attr`, a function from text to text")
    answers = "\n\n".join(f"Answer {i}:\n{t}" for i, t in enumerate(texts, start=1))
    asked = _PROMPT.format(count=len(texts), problem=_shown(task.prompt), answers=answers)
    reply = registry.resolve("ask", ask)(asked)
    numbers = [int(n) for n in re.findall(r"-?\d+", reply)]
    if len(numbers) != len(texts):
        raise PluginError(
            f"cluster judge: {len(texts)} answers of task {task.id!r} were asked about, and the reply "
            f"has {len(numbers)} numbers: {reply[:200]!r}"
        )
    return numbers


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)


def _numbered(keys: Sequence[Any]) -> list[int]:
    seen: dict[Any, int] = {}
    return [-1 if key is None else seen.setdefault(key, len(seen)) for key in keys]


def _ngrams(one: str, width: int) -> dict[int, float]:
    counts: dict[int, float] = {}
    for start in range(max(1, len(one) - width + 1) if one else 0):
        place = zlib.crc32(one[start : start + width].encode())
        counts[place] = counts.get(place, 0.0) + 1.0
    return counts


def _cosine(one: dict[int, float], other: dict[int, float]) -> float:
    inner = math.fsum(value * other.get(place, 0.0) for place, value in one.items())
    return inner / math.sqrt(
        math.fsum(v * v for v in one.values()) * math.fsum(v * v for v in other.values())
    )
