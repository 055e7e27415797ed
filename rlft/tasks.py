"""The task stream: which tasks belong to ticket `i`. A pure function of `i`, so it has no cursor to
save: whoever knows the number of the next ticket knows its tasks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from rlft.errors import DataError
from rlft.seeding import Key
from rlft.types import Task, Ticket


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
