"""Weights that are held still for a while, by patterns of their names, bit for bit at every ZeRO stage.

A frozen weight stays in the optimizer, in a group of its own with learning rate 0, and its gradient is
made 0 before anybody sees it: it neither moves nor counts in the norm that others are clipped by. When it
is thawed its group's optimizer state is dropped, so that it begins like any other weight. (Taking it out
of the optimizer would mean another DeepSpeed engine, with another layout of shards, at the thaw.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from rlft.config import Freeze
from rlft.errors import ConfigError


class Frozen:
    """One rule and the weights that it holds. `mark` goes into the group of the optimizer."""

    def __init__(self, rule: Freeze, number: int) -> None:
        self.rule, self.mark, self.holds = rule, f"frozen {number}", True

    def hook(self, parameter: torch.nn.Parameter) -> None:
        """From now on the parameter's gradient is 0 while the rule holds."""
        parameter.register_hook(lambda grad: torch.zeros_like(grad) if self.holds else None)


def frozen_groups(
    groups: Sequence[dict[str, Any]],
    named: Iterable[tuple[str, torch.nn.Parameter]],
    rules: Sequence[Freeze],
) -> tuple[list[dict[str, Any]], list[Frozen]]:
    """The optimizer's groups with each rule's weights in groups of their own, and the rules. A weight
    belongs to the first rule that names it. Raises ConfigError: a pattern that names nothing, or rules
    that leave nothing to train for ever."""
    found = [Frozen(rule, number) for number, rule in enumerate(rules)]
    whose: dict[int, Frozen] = {}
    names = [(name, p) for name, p in named if p.requires_grad]
    for frozen in found:
        for pattern in frozen.rule.names:
            matched = [p for name, p in names if fnmatchcase(name, pattern)]
            if not matched:
                raise ConfigError(
                    f"learner.freeze: no trained weight is called {pattern!r}; there are "
                    f"{', '.join(name for name, _ in names[:8])}{' ...' if len(names) > 8 else ''}"
                )
            for p in matched:
                whose.setdefault(id(p), frozen)
    if names and all(id(p) in whose and whose[id(p)].rule.until is None for _, p in names):
        raise ConfigError("learner.freeze holds every weight for ever; leave some to train")
    split = []
    for group in groups:
        for owner in (None, *found):
            params = [p for p in group["params"] if whose.get(id(p)) is owner]
            if params:
                split.append(
                    {**group, "params": params, "held": "" if owner is None else owner.mark}
                )
    for _, p in names:
        if id(p) in whose:
            whose[id(p)].hook(p)
    return split, found


def names_held(names: Iterable[str], rules: Sequence[Frozen]) -> list[str]:
    """Those of `names` that a rule holds now. Of buffers: what normalises is part of what is frozen."""
    patterns = [pattern for frozen in rules if frozen.holds for pattern in frozen.rule.names]
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]


def thaw(engine: Any, rules: Sequence[Frozen], step: int) -> None:
    """Says that `step` steps of the run are done: rules whose time is over let go."""
    optimizer = engine.basic_optimizer
    for frozen in rules:
        until = frozen.rule.until
        if not frozen.holds or until is None or step < until:
            continue
        frozen.holds = False
        for held in _moved(engine, "held", frozen.mark):
            optimizer.state.pop(held, None)


def begin_anew(engine: Any, whose: str) -> None:
    """Drops the optimizer state of what `whose` names if it has seen nothing but gradients of 0: the count
    of steps ran on meanwhile, and Adam, which divides by what it expects after so many, would make the
    first real steps up to three times as long."""
    state = engine.basic_optimizer.state
    for held in _moved(engine, "whose", whose):
        seen = [x for key, x in state.get(held, {}).items() if key != "step" and torch.is_tensor(x)]
        if seen and not any(bool(x.any()) for x in seen):
            state.pop(held)


def _moved(engine: Any, key: str, mark: str) -> list[torch.Tensor]:
    """What the optimizer moves in the groups whose `key` is `mark`."""
    groups = engine.basic_optimizer.param_groups
    zero = engine.optimizer
    if hasattr(zero, "sub_group_to_group_id"):  # ZeRO-3 fills a group while it steps it
        return [
            flat
            for number, flat in enumerate(zero.fp32_partitioned_groups_flat)
            if groups[zero.sub_group_to_group_id[number]].get(key) == mark
        ]
    return [p for group in groups if group.get(key) == mark for p in group["params"]]


def still(group: dict[str, Any], rules: Sequence[Frozen]) -> bool:
    """Whether a group of the optimizer is held now."""
    return any(frozen.holds and group.get("held") == frozen.mark for frozen in rules)
