"""The task stream: which tasks belong to ticket `i`. A pure function of `i`, so it has no cursor to
save: whoever knows the number of the next ticket knows its tasks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar, overload

from rlft.errors import ConfigError, DataError, did_you_mean
from rlft.seeding import Key
from rlft.types import Task, Ticket

Code = TypeVar("Code")


class Lazy(Sequence[Task], Generic[Code]):
    """Tasks that are made when they are asked for, each from its code, so there may be very many.

    Subclasses have `codes`, and `task(code)`.
    """

    codes: Sequence[Code]

    def task(self, code: Code) -> Task:
        """The task of this code."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return [self.task(code) for code in self.codes[index]]
        return self.task(self.codes[index])


def mode_at(phases: Mapping[str, int] | None, step: int) -> str | None:
    """The mode whose phase `step` (from 0) is in: the last that has begun; None without phases.

    phases: the first step of each mode. Raises ConfigError if none has begun.
    """
    if not phases:
        return None
    begun = [(first, mode) for mode, first in phases.items() if first <= step]
    if not begun:
        raise ConfigError(f"no phase begins at step 0, which needs one; got {dict(phases)}")
    return max(begun)[1]


def in_mode(task: Task, mode: str | None) -> Task:
    """The task as `mode` poses it: `task.info["modes"][mode]` holds the fields that differ, such as
    `prompt` and `demos`; `info["mode"]` then says which it is. None: the task as it is.

    Raises DataError if the task knows no such mode.
    """
    if mode is None:
        return task
    modes = task.info.get("modes", {})
    if mode not in modes:
        raise DataError(
            f"task {task.id!r} has no mode {mode!r}.{did_you_mean(mode, modes)} "
            f"It has: {', '.join(modes) or 'none'}; an environment sets them in info['modes']."
        )
    return replace(task, **modes[mode], info={**task.info, "mode": mode})


class TaskStream:
    """Deals `per_ticket` tasks a ticket, in a new shuffled order each pass over the set."""

    def __init__(self, tasks: Sequence[Task], per_ticket: int, key: Key) -> None:
        if not len(tasks):
            raise DataError("the environment has no training tasks")
        if per_ticket > len(tasks):
            raise DataError(
                f"tasks_per_step is {per_ticket}, the environment has only {len(tasks)} training "
                f"tasks; lower tasks_per_step or add tasks."
            )
        self._tasks, self._per_ticket, self._key = tasks, per_ticket, key

    def ticket(self, index: int) -> Ticket:
        """The ticket of number `index`, from 0."""
        first = index * self._per_ticket
        places = range(first, first + self._per_ticket)
        tasks = tuple(self._tasks[self._place(p)] for p in places)
        key = self._key.child("ticket", index)
        return Ticket(index, tasks, key, functools.partial(self._spare, key.child("spare")))

    def _spare(self, key: Key, place: int) -> Task:
        """Task `place` of a random sequence; it may come twice, or be one of the ticket's own."""
        return self._tasks[key.child(place).rng().randrange(len(self._tasks))]

    def _place(self, position: int) -> int:
        pass_, offset = divmod(position, len(self._tasks))
        return self._order(pass_)[offset]

    @functools.lru_cache(maxsize=2)  # noqa: B019  (one stream a run; two passes meet in a ticket)
    def _order(self, pass_: int) -> list[int]:
        order = list(range(len(self._tasks)))
        self._key.child("pass", pass_).rng().shuffle(order)
        return order
