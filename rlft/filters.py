"""Which groups and members are learnt from. Pure; each returns new groups and drops nothing silently:
what was dropped is the difference in counts, which the run logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch

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
