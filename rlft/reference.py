"""Demonstrations among samples: which tokens a guided member begins with.

Text becomes tokens once, here; a prefix is cut from the demonstration's tokens and continued as
tokens, so nothing is ever re-tokenised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlft.errors import DataError
from rlft.policy.text import Text
from rlft.sampling.sampler import Ask, Head
from rlft.types import Guide, Row, RowRef, Task, Trajectory


@dataclass(frozen=True, slots=True)
class Demo:
    """A reference response: its text and its row; cut: it did not fit and lost its end; turns: of one of
    several turns, what was said."""

    text: str
    row: Row
    cut: bool = False
    turns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a group consists of: completions to ask an engine for, then whole demonstrations."""

    asks: tuple[Ask, ...]
    demos: tuple[Demo, ...] = ()


def demo_row(
    prompt: Sequence[int], response: Sequence[int], own: Sequence[bool] | None = None
) -> Row:
    """The row of a response that the policy did not choose: `sample_logp` is NaN. own: False where an
    environment wrote."""
    unknown = np.full(len(response), np.nan, np.float32)
    mask = None if own is None else np.array(own, bool)
    return Row(np.array([*prompt, *response], np.int32), len(prompt), unknown, mask=mask)


def wanted(
    text: Text,
    task: Task,
    prompt: Sequence[int],
    seeds: Sequence[int],
    *,
    share: float,
    guide: Guide | None,
    max_tokens: int,
    max_length: int,
) -> Wanted:
    """A member for each of `seeds`, of which the last `guide.num` begin with `share` of a demo.

    Several demonstrations take turns. A prefix of `floor(share * tokens)`, the end-of-text token
    counted, so only a share of 1 is a whole demonstration. Members are plain samples where the share
    is 0 tokens, the task has no demonstration, or it has more than `max_tokens` tokens.
    Raises DataError if prompt, prefix and `max_tokens` exceed `max_length`.
    """
    if guide is None or guide.num == 0 or share == 0:
        return Wanted((Ask(tuple(prompt), tuple(seeds)),))
    plain, guided = list(seeds[: -guide.num]), seeds[-guide.num :]
    asks, demos = [], []
    found = [(d, ids) for d in task.demos if len(ids := text.response_ids(d)) <= max_tokens]
    for order, seed in enumerate(guided):
        demo, ids = found[order % len(found)] if found else ("", [])
        length = math.floor(share * len(ids))
        if length == 0:
            plain.append(seed)
        elif length == len(ids):
            demos.append(Demo(demo, demo_row(prompt, ids)))
        else:
            _refuse_long(task, len(prompt), length, max_tokens, max_length)
            asks.append(Ask(tuple(prompt), (seed,), tuple(ids[:length]), guide.trained))
    first = [Ask(tuple(prompt), tuple(plain))] if plain else []
    return Wanted((*first, *asks), tuple(demos))


def sampled_member(
    name: str,
    task: Task,
    ask: Ask,
    head: Head,
    row: RowRef,
) -> Trajectory:
    """The trajectory of one completion of `ask`; `head` is what its sampler said of it."""
    text, sampled, truncated, version = head
    given = len(ask.prefix) if ask.trained else 0
    return Trajectory(
        id=name,
        task_id=task.id,
        origin="mixed" if ask.prefix else "policy",
        text=text,
        prompt_len=len(ask.prompt) + len(ask.prefix) - given,
        num_tokens=given + sampled,
        version=version,
        truncated=truncated,
        row=row,
        given_tokens=given,
    )


def demo_member(name: str, task: Task, demo: Demo, version: int, row: RowRef) -> Trajectory:
    """The trajectory of a demonstration, of origin `demo`."""
    response = len(demo.row.ids) - demo.row.prompt_len
    length = response if demo.row.mask is None else int(demo.row.mask.sum())
    return Trajectory(
        id=name,
        task_id=task.id,
        origin="demo",
        text=demo.text,
        prompt_len=demo.row.prompt_len,
        num_tokens=length,
        version=(version, version),
        truncated=demo.cut,
        row=row,
        given_tokens=length,
        turns=demo.turns,
        env_tokens=response - length,
    )


def _refuse_long(task: Task, prompt: int, prefix: int, max_tokens: int, max_length: int) -> None:
    if prompt + prefix + max_tokens > max_length:
        raise DataError(
            f"task {task.id!r}: prompt ({prompt} tokens), demonstration prefix ({prefix}) and "
            f"sampler.max_tokens ({max_tokens}) exceed model.max_length={max_length}. Raise "
            f"model.max_length, or lower sampler.max_tokens or the prefix's share."
        )
