"""Which groups and members are learnt from. Pure; each returns new groups and drops nothing silently:
what was dropped is the difference in counts, which the run logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch

from rlft.errors import ConfigError, did_you_mean
from rlft.types import Group


def drop_errors(groups: Iterable[Group]) -> list[Group]:
    """Groups without the members that have no reward; groups left empty are dropped."""
    kept = []
    for group in groups:
        members = tuple(m for m in group.members if m.reward is not None)
        if members:
            kept.append(dataclasses.replace(group, members=members))
    return kept


def drop_short(groups: Iterable[Group]) -> list[Group]:
    """Groups of two members or more: one whose others failed has nothing to be compared with.

    Not for methods whose groups are of one member by design.
    """
    return [g for g in groups if len(g.members) > 1]


def drop_flat(groups: Iterable[Group]) -> list[Group]:
    """Groups whose rewards differ: in the others every group-relative advantage is zero.

    The filter of DAPO (arXiv 2503.14476, section 3.2) without its refill.
    """
    return [g for g in groups if len(set(g.rewards)) > 1]


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
    values = []
    for m in members:
        parts = m.outcome.parts if m.outcome else {}
        if part not in parts and not (m.outcome and m.outcome.kind == "invalid"):
            raise ConfigError(
                f"the reward of {m.id} has no part {part!r}.{did_you_mean(part, parts)} "
                f"It has: {', '.join(parts) or 'none'}."
            )
        values.append(parts.get(part, 0.0))
    return torch.tensor(values, dtype=torch.float64)


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
