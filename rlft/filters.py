"""Which groups and members are learnt from. Pure; each returns new groups and drops nothing silently:
what was dropped is the difference in counts, which the run logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch

from rlft.errors import ConfigError, did_you_mean
from rlft.types import Group, Trajectory

Adv = TypeVar("Adv", bound=Any)
"""Advantages, of which a bool tensor `[B]` in brackets selects."""


def drop_errors(groups: Iterable[Group]) -> list[Group]:
    """Groups without the members that have no reward; groups left empty are dropped."""
    kept = []
    for group in groups:
        members = tuple(m for m in group.members if m.reward is not None)
        if members:
            kept.append(dataclasses.replace(group, members=members))
    return kept


def drop_short(groups: Iterable[Group], least: int = 2) -> list[Group]:
    """Groups of `least` members or more: one whose others failed has nothing to be compared with.

    Not for methods whose groups are of one member by design.
    """
    return [g for g in groups if len(g.members) >= least]


def drop_flat(groups: Iterable[Group], part: str | None = None) -> list[Group]:
    """Groups whose rewards differ: in the others every group-relative advantage is zero.

    part: the part of the reward to look at (whether it is right, say) in place of the whole; an
    invalid answer has none of it, which differs from every value. The filter of DAPO (arXiv
    2503.14476, section 3.2); its refill is `GRPO.refill`. Raises ConfigError: no such part.
    """
    if part is None:
        return [g for g in groups if len(set(g.rewards)) > 1]
    return [g for g in groups if len({_part(m, part) for m in g.members}) > 1]


def drop_truncated(groups: Sequence[Group], adv_B: Adv) -> tuple[list[Group], Adv]:
    """Groups without the members that were cut off, and the advantages of those that stay.

    Take advantages first: a truncated answer still counts in its group's baseline (the overlong
    filter of DAPO, arXiv 2503.14476, section 3.4). Groups left empty are dropped.
    """
    members, _ = members_of(groups)
    whole_B = torch.tensor([not m.truncated for m in members], dtype=torch.bool)
    kept = []
    for group in groups:
        there = tuple(m for m in group.members if not m.truncated)
        if there:
            kept.append(dataclasses.replace(group, members=there))
    return kept, adv_B[whole_B]


def _part(member: Trajectory, part: str) -> float | None:
    outcome = member.outcome
    if outcome is None or outcome.kind != "value":
        return None
    if part not in outcome.parts:
        raise ConfigError(
            f"the reward of {member.id} has no part {part!r}.{did_you_mean(part, outcome.parts)} "
            f"It has: {', '.join(outcome.parts) or 'none'}."
        )
    return outcome.parts[part]


def keep_correct(groups: Iterable[Group], threshold: float = 1.0) -> list[Group]:
    """Groups reduced to members with at least `threshold` reward; empty ones are dropped."""
    kept = []
    for group in groups:
        members = tuple(m for m in group.members if m.reward is not None and m.reward >= threshold)
        if members:
            kept.append(dataclasses.replace(group, members=members))
    return kept


def drop_unneeded(groups: Iterable[Group], enough: float) -> list[Group]:
    """Groups without their given members (demonstrations, prefixes) where a sampled one earned
    `enough`; such a group needs no help. Groups left empty are dropped."""
    kept = []
    for group in groups:
        own = tuple(m for m in group.members if m.origin == "policy")
        needed = all(m.reward is None or m.reward < enough for m in own)
        members = group.members if needed else own
        if members:
            kept.append(dataclasses.replace(group, members=members))
    return kept


def given_numbers(groups: Sequence[Group]) -> dict[str, float]:
    """How many tasks have no demonstration (`reference/missing`), and in how many groups one that
    exists was not given (`reference/not_given`): it is longer than `sampler.max_tokens`, its prefix
    had no token, or it was not needed."""
    given = [any(m.origin != "policy" for m in g.members) for g in groups]
    return {
        "reference/missing": float(sum(not g.task.demos for g in groups)),
        "reference/not_given": float(
            sum(bool(g.task.demos) and not has for g, has in zip(groups, given, strict=True))
        ),
    }


def part_of(groups: Sequence[Group], part: str | None) -> torch.Tensor:
    """The named part of every member's reward, float64 `[B]`; None: the whole reward.

    An answer without parts because it is `invalid` has 0 of it. Raises ConfigError naming the parts
    that there are.
    """
    rewards, _ = rewards_of(groups)
    if part is None:
        return rewards
    members, _ = members_of(groups)
    return torch.tensor([_part(m, part) or 0.0 for m in members], dtype=torch.float64)


def members_of(groups: Sequence[Group]) -> tuple[list, list[int]]:
    """All members in order, and for each the index of its group."""
    pairs = [(m, index) for index, g in enumerate(groups) for m in g.members]
    return [m for m, _ in pairs], [index for _, index in pairs]


def rewards_of(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """`(reward [B] float64, group [B] int64)` of all members in order: what advantages take.

    Raises ValueError if a member has no reward: failed rewards are dropped first, never counted.
    """
    members, index = members_of(groups)
    if any(m.reward is None for m in members):
        raise ValueError("a member has no reward; drop_errors(groups) first")
    rewards = torch.tensor([m.reward for m in members], dtype=torch.float64)
    return rewards, torch.tensor(index, dtype=torch.int64)
