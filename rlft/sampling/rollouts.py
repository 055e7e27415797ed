"""Many episodes of a saved policy in this process: what an evaluation is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlft.policy.actor_critic import load_policy
from rlft.sampling.episodes import Block, Start
from rlft.sampling.guarded import Alarm
from rlft.sampling.strips import Piece
from rlft.sampling.vector import answer, block_of, choice_of
from rlft.seeding import Key
from rlft.types import Episode, Task


def rollouts(
    env: Any,
    folder: Path,
    tasks: Sequence[Task],
    n: int,
    key: Key,
    *,
    greedy: bool = False,
    envs: int = 32,
    timeout: float = 60.0,
    device: str = "cpu",
) -> list[list[Episode]]:
    """`n` episodes from each configuration by the policy in `folder`; element `i` belongs to `tasks[i]`.

    env: the plug-in; timeout: seconds for a step; device: where the policy computes. An episode's
    randomness depends on `key`, the configuration's place and the episode's number alone.
    """

    def starts(block: Block, policy: Any) -> list[Start]:
        return [
            Start(task, key.child(place, j).seed(63))
            for place, task in enumerate(tasks)
            for j in range(n)
        ]

    how: Any = {"greedy": greedy, "envs": envs, "timeout": timeout, "device": device}
    episodes = played(env, folder, starts, **how)
    return [episodes[i * n : (i + 1) * n] for i in range(len(tasks))]


def played(
    env: Any,
    folder: Path,
    starts: Callable[[Block, Any], Sequence[Start]],
    *,
    greedy: bool = False,
    envs: int = 32,
    timeout: float = 60.0,
    device: str = "cpu",
) -> list[Episode]:
    """One episode from each start that `starts` makes with the block of environments and the policy."""
    how: Any = {"greedy": greedy, "envs": envs, "timeout": timeout, "device": device}
    pieces = pieces_of(env, folder, starts, **how, record=False)
    return [piece.episode for piece in pieces if piece.episode is not None]


def pieces_of(
    env: Any,
    folder: Path,
    starts: Callable[[Block, Any], Sequence[Start]],
    *,
    greedy: bool,
    envs: int,
    record: bool,
    timeout: float = 60.0,
    device: str = "cpu",
) -> list[Piece]:
    """The same, with the strip of each episode if `record`. On the main thread a step that takes longer
    than `timeout` ends its episode."""
    one, where = env.make(), torch.device(device)
    policy = load_policy(folder, one).to(where).eval()
    choice = choice_of(policy, one.action_space, where)
    one.close()
    alarmed = threading.current_thread() is threading.main_thread() and not Alarm.installed()
    if alarmed:
        Alarm.install()
    block = block_of(env, envs, choice, timeout)
    rolling = block.episodes(starts(block, policy), greedy=greedy, record=record)
    acted: Any = None
    try:
        while True:
            acted = answer(policy, rolling.send(acted), where)
    except StopIteration as end:
        pieces, _ = end.value
    finally:
        block.close()
        if alarmed:
            Alarm.uninstall()
    return pieces
