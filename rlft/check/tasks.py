"""The tasks of a run: that there are enough, and that their prompts fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlft.algo import Algo
from rlft.config import Config
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Task


def check_tasks(cfg: Config, env: Any) -> tuple[TaskStream, Sequence[Task]]:
    """The training tasks, dealt into tickets, and the held-out ones. Raises DataError."""
    key = Key(cfg.seed).child("tasks")
    return TaskStream(env.train(), cfg.tasks_per_step, key), env.held_out()


def check_prompts(
    cfg: Config, algo: Algo, start: Path, tasks: TaskStream, held_out: Sequence[Task]
) -> None:
    """Raises DataError for a prompt that does not fit, of those that come first."""
    from rlft.policy.text import Text

    text = Text(start, cfg.sampler.stop)
    needed = cfg.sampler.max_tokens if algo.samples else 1
    first = [held_out[i] for i in range(min(cfg.eval.max_tasks, len(held_out)))]
    for index in range(min(cfg.steps, 64)):
        first += tasks.ticket(index).tasks[:64]
    for task in first:
        text.fitting_prompt(task, needed, cfg.model.max_length)
