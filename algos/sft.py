"""Supervised fine-tuning: the baseline, the warm start, and what trains on rows that were sampled.

Maximum likelihood of the response given the prompt; the prompt itself is not trained on. Chat messages
go through the model's template, and the response is closed by its end-of-text token. Rows of similar
length share a micro-batch, up to `learner.token_budget` tokens (rlft/batch.py); with `packing` short
ones also lie behind each other in one sequence, attention kept apart (rlft/packing.py).

The rows are the demonstrations of the environment's tasks or, with `rows`, those of files, such as
algo `rft` writes; the environment then serves evaluation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

from rlft import registry
from rlft.algo import Algo
from rlft.config import Positive
from rlft.errors import DataError
from rlft.losses import NegativeLogLikelihood
from rlft.tasks import TaskStream
from rlft.types import Group, Task, Term, Ticket, WeightUpdate


@dataclass(frozen=True)
class SFT(Algo):
    """rows: a file of prompts and responses, or several, in place of the environment's demonstrations;
    prompt, response: their columns; aggregate: mean over tokens of the batch, or over responses;
    packing: short rows share a sequence; epochs: passes over each batch."""

    samples: ClassVar[bool] = False

    rows: str | list[str] | None = None
    prompt: str = "prompt"
    response: str = "response"
    aggregate: Literal["token", "sequence"] = "token"
    packing: bool = False
    epochs: Positive = 1
    minibatches: Positive = 1

    def __post_init__(self) -> None:
        if self.rows is not None:
            _ = self._tasks  # a file that cannot be used is an error now

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("nll", NegativeLogLikelihood()),)

    async def collect(self, run, ticket: Ticket) -> list[Group]:
        tasks: Sequence[Task] = ticket.tasks
        if self.rows is not None:
            stream = TaskStream(self._tasks, len(tasks), run.key.child("rows"))
            tasks = stream.ticket(ticket.index).tasks
        groups = await run.demos(tasks)
        if not groups:
            raise DataError(
                "none of the step's tasks has a demonstration; SFT needs Task.demos, or algo.rows"
            )
        return _whole(run, groups)

    def learn(self, run, groups: list[Group]) -> WeightUpdate | None:
        return run.fit(
            groups,
            None,
            aggregate=self.aggregate,
            epochs=self.epochs,
            minibatches=self.minibatches,
            packed=self.packing,
        )

    @cached_property
    def _tasks(self) -> list[Task]:
        """The rows of all files. Raises DataError that names file, row and column."""
        files = [self.rows] if isinstance(self.rows, str) else self.rows or []
        columns = {"prompt": self.prompt, "demos": self.response, "target": None, "chat": False}
        tasks = []
        for file in files:
            found = registry.build("env", {"name": "jsonl", "path": file, **columns}).train()
            for task in found:
                if not any(demo.strip() for demo in task.demos):
                    raise DataError(f"{file}, row {task.id}: {self.response!r} is empty")
            tasks += [replace(task, id=f"{file}:{task.id}") for task in found]
        return tasks


def _whole(run, groups: Sequence[Group]) -> list[Group]:
    """Groups without responses that do not fit into `model.max_length`, which are counted: cut ones
    would teach never to stop."""
    kept = [replace(g, members=tuple(m for m in g.members if not m.truncated)) for g in groups]
    lost = sum(len(g.members) for g in groups) - sum(len(g.members) for g in kept)
    run.note({"rows/too_long": float(lost)})
    return [g for g in kept if g.members]
