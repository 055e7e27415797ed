"""What an advantage may read, and how it gets it.

An advantage is a pure function; its parameters *without* default say what it reads, by name, and those
with one are its keys in the YAML. Whoever writes a new one needs nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from rlft import registry
from rlft.credit.clusters import Cluster
from rlft.credit.decision import RowSteps
from rlft.credit.steps import StepAdvantages
from rlft.errors import ConfigError, PluginError, did_you_mean
from rlft.filters import members_of, rewards_of
from rlft.types import Group, Trajectory

Advantage = Callable[..., "torch.Tensor | StepAdvantages"]

READABLE: Mapping[str, str] = {
    "reward_B": "the rewards, float64 [B]",
    "group_B": "which rows share a baseline, int64 [B]",
    "length_B": "tokens of each answer, int64 [B]",
    "parts": "named parts of the rewards, each float64 [B]; `reward` is the whole",
    "steps": "each answer's steps, (characters up to its end, reward); without any, the answer is one",
    "cluster_B": "which strategy a row follows, int64 [B]: by the key `cluster`, a plug-in; without it the "
    "reward's part `cluster`, else by text",
}
"""The names, and what they stand for."""


def reads(advantage: Advantage) -> tuple[str, ...]:
    """The names that `advantage` reads. Raises PluginError for one that there is not."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = tuple(
        name
        for name, p in inspect.signature(advantage).parameters.items()
        if p.default is p.empty and p.kind not in kinds
    )
    for name in names:
        if name not in READABLE:
            raise PluginError(
                f"advantage {_name(advantage)} reads {name!r}, which there is not."
                f"{did_you_mean(name, READABLE)} An advantage may read: {', '.join(READABLE)}; its "
                f"own keys need a default."
            )
    if "cluster_B" in names:
        _clustering(advantage)
    return names


def members_needed(advantage: Advantage) -> int:
    """The fewest members of a group that `advantage` can tell apart: 2, or what its attribute
    `members_needed`, a function of its keys, says."""
    inner = getattr(advantage, "func", advantage)
    needed = getattr(inner, "members_needed", None)
    if needed is None:
        return 2
    defaults = {n: p.default for n, p in inspect.signature(inner).parameters.items()}
    return needed(**(defaults | getattr(advantage, "keywords", {})))


def refuse_small_groups(advantage: Advantage, group_size: int) -> None:
    """Raises ConfigError: in groups of `group_size` every advantage would be 0."""
    least = members_needed(advantage)
    if group_size < least:
        keys = getattr(advantage, "keywords", {})
        given = ", ".join(f"{key}: {value}" for key, value in keys.items()) or "by default"
        raise ConfigError(
            f"algo.group_size is {group_size}, but advantage {_name(advantage)} ({given}) needs groups of "
            f"at least {least}: in smaller ones every advantage is 0. Raise algo.group_size, or lower "
            f"what the advantage asks of a group."
        )


def advantages(
    advantage: Advantage, groups: Sequence[Group], reward_B: torch.Tensor | None = None
) -> torch.Tensor | StepAdvantages:
    """What `advantage` says of every member of `groups`, in order: `[B]`, or of their steps.

    reward_B: shaped rewards in place of the members' own. Raises PluginError: another shape.
    """
    members, _ = members_of(groups)
    own_B, group_B = rewards_of(groups)
    reward_B = own_B if reward_B is None else reward_B
    sources: dict[str, Callable[[], Any]] = {
        "reward_B": lambda: reward_B,
        "group_B": lambda: group_B,
        "length_B": lambda: torch.tensor([m.num_tokens for m in members], dtype=torch.int64),
        "parts": lambda: {**parts_of(members), "reward": reward_B},
        "steps": lambda: steps_of(members, reward_B),
        "cluster_B": lambda: _clusters(groups, _clustering(advantage)),
    }
    adv_B = advantage(**{name: sources[name]() for name in reads(advantage)})
    if isinstance(adv_B, StepAdvantages):
        return adv_B
    if not isinstance(adv_B, torch.Tensor) or adv_B.shape != (len(members),):
        got = list(adv_B.shape) if isinstance(adv_B, torch.Tensor) else type(adv_B).__name__
        raise PluginError(
            f"advantage {_name(advantage)} returned {got}, expected one number a row: [{len(members)}]"
        )
    return adv_B


def parts_of(members: Sequence[Trajectory]) -> dict[str, torch.Tensor]:
    """Every named part of the rewards, float64 `[B]`.

    An invalid answer has no parts; each then counts as what the answer got. Raises ConfigError if a
    part is missing anywhere else.
    """
    names = {name for m in members if m.outcome for name in m.outcome.parts}
    return {
        name: torch.tensor([_part(m, name) for m in members], dtype=torch.float64)
        for name in sorted(names)
    }


def steps_of(members: Sequence[Trajectory], reward_B: torch.Tensor) -> list[RowSteps]:
    """Each answer's steps; of one without, itself as the only step, worth its reward."""
    found = [m.outcome.steps if m.outcome else () for m in members]
    whole = [((max(1, len(m.text)), float(r)),) for m, r in zip(members, reward_B, strict=True)]
    return [own or one for own, one in zip(found, whole, strict=True)]


def _clustering(advantage: Advantage) -> Cluster | None:
    """The plug-in that the advantage's key `cluster` names. Raises PluginError or ConfigError."""
    spec = getattr(advantage, "keywords", {}).get("cluster")
    return None if spec is None else registry.build("cluster", spec)


def _clusters(groups: Sequence[Group], cluster: Cluster | None) -> torch.Tensor:
    """Cluster ids int64 `[B]`, by `cluster` or as `clusters_of` has them; invalid answers are
    degenerate."""
    if cluster is None:
        return clusters_of(members_of(groups)[0])
    ids: list[int] = []
    for group in groups:
        said = [int(i) for i in cluster([m.text for m in group.members], group.task)]
        if len(said) != len(group.members):
            raise PluginError(
                f"algo.advantage.cluster returned {len(said)} numbers for {len(group.members)} answers"
            )
        ids += [-1 if _invalid(m) else i for m, i in zip(group.members, said, strict=True)]
    return torch.tensor(ids, dtype=torch.int64)


def clusters_of(members: Sequence[Trajectory]) -> torch.Tensor:
    """Cluster ids int64 `[B]`: the part `cluster` of the rewards; without one, equal texts are one.

    A reward that returns `cluster` knows what makes two answers the same strategy (the equations, say);
    negative: degenerate. Invalid answers are degenerate.
    """
    if any("cluster" in m.outcome.parts for m in members if m.outcome):
        ids = [-1 if _invalid(m) else int(_part(m, "cluster")) for m in members]
        return torch.tensor(ids, dtype=torch.int64)
    seen: dict[str, int] = {}
    ids = [-1 if _invalid(m) else seen.setdefault(m.text.strip(), len(seen)) for m in members]
    return torch.tensor(ids, dtype=torch.int64)


def _part(member: Trajectory, name: str) -> float:
    assert member.outcome is not None and member.reward is not None  # rewards_of has checked it
    if name in member.outcome.parts:
        return member.outcome.parts[name]
    if _invalid(member):
        return member.reward
    raise ConfigError(
        f"the reward of {member.id} has no part {name!r}, which other rows have; a reward function "
        f"must return the same parts for every answer."
    )


def _invalid(member: Trajectory) -> bool:
    return member.outcome is not None and member.outcome.kind == "invalid"


@cache
def _name(advantage: Advantage) -> str:
    inner = getattr(advantage, "func", advantage)
    return getattr(inner, "__name__", repr(inner))
