"""The configured reward functions, resolved where they run: their names, and what each is given."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlft import registry
from rlft.config import Rewards
from rlft.rewards.outcome import RewardFn
from rlft.types import Attempt, Task

Functions = list[tuple[str, RewardFn, float]]
"""(name of its parts, function of an `Attempt` and a task, weight)."""


def part_names(rewards: Rewards) -> list[str]:
    """What the parts of each function are called in the log: its name, numbered if not unique."""
    names = [spec.fn.rsplit(":", 1)[-1] for spec in rewards.fns]
    return [n if names.count(n) == 1 else f"{n}{i}" for i, n in enumerate(names)]


def functions(rewards: Rewards, folders: Sequence[str]) -> tuple[Functions, bool]:
    """The configured functions, and whether any is async.

    folders: where plug-in files with a relative path are looked for, the first that has it; modules
    see the first that exists as their working folder while they are imported.
    """
    here = next((folder for folder in folders if os.path.isdir(folder)), None)
    if here is not None:
        os.chdir(here)
    made, waits = [], False
    for part, spec in zip(part_names(rewards), rewards.fns, strict=True):
        fn = registry.build("reward", {"name": _located(spec.fn, folders), **spec.args})
        if (load := getattr(fn, "load", None)) is not None:
            load()  # what is slow: here, and not where a class is only checked
        waits = waits or is_async(fn)
        made.append((part, _given_an_attempt(fn), spec.weight))
    return made, waits


def _located(name: str, folders: Sequence[str]) -> str:
    file, colon, attr = name.rpartition(":")
    if not file.endswith(".py") or os.path.isabs(os.path.expanduser(file)):
        return name
    found = (Path(folder, file) for folder in folders if Path(folder, file).is_file())
    return f"{next(found, file)}{colon}{attr}"


def is_async(fn: Any) -> bool:
    """Whether calling `fn` gives something to wait for."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004  (an object whose call is async)
    )


def _given_an_attempt(fn: RewardFn) -> RewardFn:
    """`fn` as a function of an attempt: whole if its first parameter is `trajectory`, else its text."""
    if next(iter(inspect.signature(fn).parameters), None) == "trajectory":
        return fn

    @functools.wraps(fn, assigned=(), updated=())
    def of_text(attempt: Attempt, task: Task) -> Any:
        return fn(attempt.text, task)

    return of_text
