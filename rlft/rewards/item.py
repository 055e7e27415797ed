"""What the driver sends to reward processes: a pickled `(Attempt, Task)`."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from ray import cloudpickle

from rlft.types import Attempt, Group, Prompt, Task, Trajectory


class ByValue:
    """Unpickles as what `blob` holds."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return pickle.loads, (self.blob,)


def by_value(task: Task) -> ByValue:
    """The task, pickled once, for it is slow, and so that its own class needs no import over there."""
    return ByValue(cloudpickle.dumps(task))


def items(group: Group, role: str) -> list[bytes]:
    """One for each member. role: of what an environment answered."""
    task = by_value(group.task)
    return [pickle.dumps((attempt(m, group.task, role), task)) for m in group.members]


def attempt(member: Trajectory, task: Task, role: str) -> Attempt:
    """What a reward may see of a trajectory."""
    return Attempt(
        id=member.id,
        origin=member.origin,
        text=member.text,
        messages=conversation(task.prompt, member.turns or (member.text,), role),
        num_tokens=member.num_tokens,
        truncated=member.truncated,
        version=member.version,
    )


def conversation(prompt: Prompt, turns: Sequence[str], role: str) -> tuple[Mapping[str, str], ...]:
    """The prompt's messages, then the policy's turns and the environment's answers."""
    before = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    said = ({"role": (role if i % 2 else "assistant"), "content": t} for i, t in enumerate(turns))
    return (*before, *said)
