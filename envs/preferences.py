"""Pairs of responses from any file of rows: which of two answers to a prompt is better.

The files are those of `jsonl`. The chosen response is the task's demonstration, so `sft` on the same
rows imitates it; the rejected one is in `task.info`. Both are text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from envs.jsonl import PLACE, Rows
from rlft.errors import ConfigError, DataError, did_you_mean
from rlft.types import Task


@dataclass(frozen=True)
class Preferences:
    """path: the training rows; held_out_path: rows to evaluate on; held_out_size: or so many of the
    training rows, drawn by `seed` and then not trained on.

    prompt, chosen, rejected: columns; margin: column of a number above 0, how much better the chosen
    one is, null for none; template: the prompt text, with `{prompt}` in it; chat: make text a user
    message, else raw text; system: a system message before it; limit, held_out_limit: the first so many
    rows only.
    """

    path: str
    held_out_path: str | None = None
    held_out_size: int = 0
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None
    template: str = PLACE
    chat: bool = True
    system: str | None = None
    limit: int | None = None
    held_out_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._rows()
        if len({self.prompt, self.chosen, self.rejected}) < 3:
            raise ConfigError("prompt, chosen and rejected must be three columns")

    def train(self) -> Sequence[Task]:
        """The pairs to train on, in the file's order. Raises DataError; also if no two texts differ."""
        tasks = [self._pair(t) for t in self._rows().train()]
        if all(t.demos[0] == t.info["rejected"] for t in tasks):
            raise DataError(
                f"{self.path}: in all {len(tasks)} rows {self.chosen!r} and {self.rejected!r} are the same "
                f"text, so there is nothing to prefer. Are these the right columns?"
            )
        return tasks

    def held_out(self) -> Sequence[Task]:
        """The pairs to evaluate on; empty if none were asked for. Raises DataError."""
        return [self._pair(t) for t in self._rows().held_out()]

    def _rows(self) -> Rows:
        shared = {f.name for f in dataclasses.fields(self)} - {"chosen", "rejected", "margin"}
        return Rows(**{n: getattr(self, n) for n in shared}, target=None, demos=self.chosen)

    def _pair(self, task: Task) -> Task:
        """`task` with its other columns under the names that algorithms look for."""
        where = f"{self.path}, row {task.id}"
        info = dict(task.info)
        rejected = _popped(info, self.rejected, where)
        if len(task.demos) != 1 or not isinstance(rejected, str):
            raise DataError(
                f"{where}: {self.chosen!r} and {self.rejected!r} must be one text each, got "
                f"{len(task.demos)} and a {type(rejected).__name__}"
            )
        info["rejected"] = rejected
        if self.margin is not None:
            info["margin"] = _number(_popped(info, self.margin, where), self.margin, where)
        return dataclasses.replace(task, info=info)


def _popped(info: dict, name: str, where: str) -> object:
    if name not in info:
        raise DataError(
            f"{where} has no column {name!r}. Others there: {', '.join(map(repr, info)) or 'none'}."
            f"{did_you_mean(name, map(str, info))}"
        )
    return info.pop(name)


def _number(value: object, name: str, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is none is refused below
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise DataError(f"{where}: column {name!r} is {value!r}, expected a number above 0")
    return number
