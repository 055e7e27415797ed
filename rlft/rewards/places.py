"""Where each reward function is worked out: with the others in the reward workers, or in an actor of its
own because it holds a model. And one outcome from what all places said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlft import registry
from rlft.config import Config, Reward, Rewards
from rlft.rewards.functions import part_names
from rlft.types import Outcome


@dataclass(frozen=True, slots=True)
class Place:
    """Actors that score the same functions. name: of such an actor; fns: the functions' places in
    `rewards.fns`; rewards: the section as these actors read it; num: how many there are; own: one actor
    for one function; gpus: of it."""

    name: str
    fns: tuple[int, ...]
    rewards: Rewards
    num: int
    own: bool = False
    gpus: float = 0.0


def places(rewards: Rewards) -> tuple[Place, ...]:
    """The shared workers first, if any function is left to them; then each function that is alone.

    A function is alone if `gpus` is given, or if what it names says `own_actor`. Such an actor has no
    `memory_gb`: the size of a model is its own affair.
    """
    own = [i for i, spec in enumerate(rewards.fns) if _alone(spec)]
    shared = tuple(i for i in range(len(rewards.fns)) if i not in own)
    found = []
    if shared:
        given = rewards.model_copy(update={"fns": [rewards.fns[i] for i in shared]})
        found.append(Place("reward worker", shared, given, rewards.workers))
    names = part_names(rewards)
    for i in own:
        spec = rewards.fns[i]
        alone = rewards.model_copy(update={"fns": [spec], "workers": 1, "memory_gb": None})
        found.append(Place(f"reward actor {names[i]}", (i,), alone, 1, True, spec.gpus or 0.0))
    return tuple(found)


def _alone(spec: Reward) -> bool:
    return spec.gpus is not None or getattr(registry.resolve("reward", spec.fn), "own_actor", False)


def joined(rewards: Rewards, where: Sequence[Place], said: Sequence[Outcome]) -> Outcome:
    """One outcome from what each place said of a completion: rewards add up, the first failure decides.

    seconds: of the slowest, since they work at the same time.
    """
    if len(where) == 1:
        return said[0]
    names = part_names(rewards)
    parts: dict[str, float] = {}
    for place, one in zip(where, said, strict=True):
        # With several functions a place has named its parts already.
        prefix = f"{names[place.fns[0]]}/" if len(place.fns) == 1 else ""
        parts |= {f"{prefix}{name}": value for name, value in one.parts.items()}
    seconds = max(one.seconds for one in said)
    failed = next((one for one in said if one.kind != "value"), None)
    if failed is not None:
        return replace(failed, parts=parts, seconds=seconds)
    total = math.fsum(one.reward for one in said if one.reward is not None)
    return Outcome("value", total, parts, seconds=seconds)


def host(cfg: Config) -> Rewards | None:
    """The section `rewards` as workers read it whose one function is the environment, if it answers back:
    they are asked after each turn of a policy that writes. None: it does not, or nothing is sampled."""
    name = cfg.env if isinstance(cfg.env, str) else str(cfg.env.get("name"))
    if not cfg.sampler.num or not answers_back(registry.resolve("env", name)):
        return None
    asked = Reward(fn="rlft.rewards.dialogues:Dialogues", args={"env": cfg.env})
    return cfg.rewards.model_copy(update={"fns": [asked]})


def answers_back(env: Any) -> bool:
    """Whether an environment, or its class, has `dialogue`: text is answered with text."""
    return callable(getattr(env, "dialogue", None))
