"""Pairs of responses: which is chosen, which rejected, and which pairs say nothing. Pure.

A pair is a group whose first member is the chosen response and whose second is the rejected one; their
advantages are `+strength, -strength`, and 0 of any other member.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch

from rlft.errors import DataError
from rlft.types import Group, Task


def as_pairs(tasks: Sequence[Task]) -> list[Task]:
    """The tasks with the chosen and the rejected response as their demonstrations.

    Raises DataError: a task has no chosen demonstration, or no `rejected` text.
    """
    made = []
    for task in tasks:
        rejected = task.info.get("rejected")
        if len(task.demos) != 1 or not isinstance(rejected, str):
            raise DataError(
                f"task {task.id!r} is no pair: it has {len(task.demos)} demonstrations and "
                f"{'a' if isinstance(rejected, str) else 'no'} text `info['rejected']`; expected one of "
                f"each. Use the environment `preferences`, or fill both in yours."
            )
        made.append(dataclasses.replace(task, demos=(task.demos[0], rejected)))
    return made


def with_unrelated(pairs: Sequence[Task]) -> list[Task]:
    """The pairs with a third demonstration each: the chosen response to the next one's prompt.

    Raises DataError: a single pair, whose next one is itself.
    """
    if len(pairs) < 2:
        raise DataError(
            "the reference point of KTO compares responses with other prompts, and the step has one pair; "
            "set tasks_per_step to at least 2"
        )
    after = [*pairs[1:], pairs[0]]
    return [
        dataclasses.replace(task, demos=(*task.demos, other.demos[0]))
        for task, other in zip(pairs, after, strict=True)
    ]


def best_and_worst(groups: Iterable[Group]) -> list[Group]:
    """Of each group the members with the highest and the lowest reward, the first of equals.

    Groups whose rewards do not differ are left out. Raises ValueError if a member has no reward.
    """
    pairs = []
    for group in groups:
        rewards = group.rewards
        if len(rewards) < len(group.members):
            raise ValueError("a member has no reward; drop_errors(groups) first")
        if len(set(rewards)) > 1:
            ends = (rewards.index(max(rewards)), rewards.index(min(rewards)))
            pairs.append(dataclasses.replace(group, members=tuple(group.members[i] for i in ends)))
    return pairs


def comparable(groups: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """The pairs that say something, and how many were left out: equal texts (`pairs/equal`), or a given
    text that does not fit and lost its end (`pairs/too_long`)."""
    kept, equal, cut = [], 0, 0
    for group in groups:
        chosen, rejected, *_ = group.members
        if chosen.text == rejected.text:
            equal += 1
        elif any(m.truncated and m.origin == "demo" for m in group.members):
            cut += 1
        else:
            kept.append(group)
    return kept, {"pairs/equal": float(equal), "pairs/too_long": float(cut)}


def strengths(groups: Sequence[Group]) -> torch.Tensor:
    """The advantages of all members in order, `+strength, -strength` and zeros of each pair: the number
    `margin` in the task's info, else 1.

    Raises DataError: a margin that is not above 0 (a pair that says nothing, or the other way round).
    """
    made: list[float] = []
    for group in groups:
        strength = group.task.info.get("margin", 1.0)
        if not isinstance(strength, int | float) or not strength > 0:
            raise DataError(
                f"task {group.task.id!r}: its margin is {strength!r}; expected a number above 0, how much "
                f"better the chosen response is"
            )
        others = len(group.members) - 2
        made += [float(strength), -float(strength), *[0.0] * others]
    return torch.tensor(made)
