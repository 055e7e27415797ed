"""A language model with two skills, of which reward asks for one: for `forgetting_text.py`.

The first skill is `envs/addition.py`: `347+285=`, in two habits. The second has the same characters and
nothing to do with it: `,47135=` asks for the digits from the last to the first, `53174`. The start learns
both by imitation; fine-tuning sees additions alone, so what it does to reversals shows what is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from envs.addition import Addition
from envs.addition import reward as addition_reward
from rlft.seeding import Key
from rlft.tasks import Lazy
from rlft.types import Task

DIGITS = 5
EOS = "<eos>"


@dataclass(frozen=True)
class Reversals(Lazy[int]):
    """Reversals of these numbers. shown: with the answer, all of it but the first sign to be imitated, as
    text is: what reads a reversal then knows each of its tokens."""

    codes: tuple[int, ...]
    shown: bool

    def task(self, code: int) -> Task:
        answer = str(code)[::-1]
        if self.shown:
            return Task(id=str(code), prompt=",", target=answer, demos=(f"{code}={answer}",))
        return Task(id=str(code), prompt=f",{code}=", target=answer)


@dataclass(frozen=True)
class Both(Lazy[int]):
    """An addition, a reversal, an addition and so on."""

    codes: range
    additions: Sequence[Task]
    reversals: Sequence[Task]

    def task(self, code: int) -> Task:
        return (self.additions, self.reversals)[code % 2][code // 2]


@dataclass(frozen=True)
class TwoSkills:
    """skill: whose tasks to train and be evaluated on; size: reversals to train on; held_out_size: tasks of
    each skill that are kept back; seed: picks the numbers."""

    skill: Literal["both", "addition", "reversal"] = "both"
    size: int = 40_000
    held_out_size: int = 256
    seed: int = 0

    def train(self) -> Sequence[Task]:
        return self._chosen(self._addition().train(), self.reversals(shown=True))

    def held_out(self) -> Sequence[Task]:
        return self._chosen(self._addition().held_out(), self.reversals(shown=False))

    def answer(self, completion: str, task: Task) -> str:
        """What a completion answers, to count votes by."""
        return completion.rpartition("=")[2]

    def reversals(self, *, shown: bool) -> Reversals:
        """The training ones, with their answers, or the held-out ones without."""
        every = list(range(10 ** (DIGITS - 1), 10**DIGITS))
        Key(self.seed, ("two_skills", "reversals")).rng().shuffle(every)
        cut = self.held_out_size
        return Reversals(tuple(every[cut : cut + self.size] if shown else every[:cut]), shown)

    def _addition(self) -> Addition:
        return Addition(held_out_size=self.held_out_size, seed=self.seed)

    def _chosen(self, additions: Sequence[Task], reversals: Sequence[Task]) -> Sequence[Task]:
        if self.skill == "both":
            shorter = min(len(additions), len(reversals))
            return Both(range(2 * shorter), additions, reversals)
        return additions if self.skill == "addition" else reversals


def texts(tasks: Sequence[Task], count: int) -> list[str]:
    """The first `count` reversals whole, end of answer included, as text that may be read or replayed."""
    return [f",{t.id}={t.target}{EOS}" for t in tasks[:count]]


def reward(completion: str, task: Task) -> dict[str, float]:
    """`reward`: 1 if right; of an addition also `careful`."""
    if task.prompt[0] != ",":
        return addition_reward(completion, task)
    return {"reward": float(completion == task.target)}
