"""Find the largest of three digits: `3,7,2=` is answered by `7`."""

from dataclasses import dataclass
from itertools import product

from rlft.seeding import Key
from rlft.types import Task


@dataclass(frozen=True)
class Largest:
    """held_out_size: how many of the 1,000 problems are kept for evaluation; seed: which."""

    held_out_size: int = 100
    seed: int = 0

    def train(self) -> list[Task]:
        return self._tasks()[self.held_out_size :]

    def held_out(self) -> list[Task]:
        return self._tasks()[: self.held_out_size]

    def _tasks(self) -> list[Task]:
        triples = list(product("0123456789", repeat=3))
        Key(self.seed, ("largest",)).rng().shuffle(triples)
        return [task(triple) for triple in triples]


def task(digits: tuple[str, ...]) -> Task:
    text, answer = ",".join(digits), max(digits)
    return Task(id=text, prompt=f"{text}=", target=answer, demos=(answer,))


def reward(completion: str, task: Task) -> float:
    return float(completion == task.target)
