"""Sums with a calculator: a small model learns, from reward alone, to ask the tool before it answers.

The prompt is `47*6+85=`. A turn of the policy is a call or the answer:

- `<47*6>` asks the calculator, which knows one operation of two numbers and answers `282`;
- `=367` answers, and ends the episode: reward 1.0 if it is right.

So three turns solve a problem: `<47*6>`, `<282+85>`, `=367`. What the calculator says comes as tokens
that the environment wrote; nobody learns to write them. A turn that is neither is answered `?`.

Demonstrations show two habits, as in `envs/addition.py`: most guess (`=390`, with both numbers rounded
to tens, which is right for 1 problem in 100), the others ask. A model that imitates them guesses; a
reward for right answers moves it to the calculator. As there, both habits were put into the data on
purpose: reward chooses between them, it does not teach arithmetic.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.addition import build_tokenizer
from rlft.errors import ConfigError
from rlft.policy.small import small_llama
from rlft.seeding import Key
from rlft.tasks import Lazy
from rlft.types import Task

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "0123456789+-*=<>?"
CALL = re.compile(r"<(\d{1,6})([+*-])(\d{1,6})>")
ANSWER = re.compile(r"=(-?\d{1,12})")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}

FACTOR, TIMES, SUMMAND = range(10, 100), range(2, 10), range(10, 100)
NUM_PROBLEMS = len(FACTOR) * len(TIMES) * len(SUMMAND)


class Asking:
    """One episode: answers calls until the policy gives its answer."""

    def __init__(self, target: str) -> None:
        self._target, self._calls, self._bad = target, 0, 0

    def reply(self, text: str) -> tuple[str, float, bool, dict[str, float]]:
        """(the calculator's words, reward, whether the episode is over, parts).

        Parts: `calls` that it understood so far, `unread` turns that it did not.
        """
        if answer := ANSWER.fullmatch(text):
            return "", float(answer[1] == self._target), True, self._parts()
        if call := CALL.fullmatch(text):
            self._calls += 1
            one, sign, other = call.groups()
            return str(OPERATIONS[sign](int(one), int(other))), 0.0, False, self._parts()
        self._bad += 1
        return "?", 0.0, False, self._parts()

    def _parts(self) -> dict[str, float]:
        return {"calls": float(self._calls), "unread": float(self._bad)}


@dataclass(frozen=True)
class CalculatorTasks(Lazy[int]):
    """Problems by their codes, made when they are asked for. asking_share: the share with a dialogue for
    a demonstration, the others guess; None: no demonstrations."""

    codes: Sequence[int]
    key: Key
    asking_share: float | None = None

    def task(self, code: int) -> Task:
        """The problem with this code; its habit depends on the seed and the code alone."""
        code, third = divmod(code, len(SUMMAND))
        first, second = divmod(code, len(TIMES))
        a, b, c = FACTOR[first], TIMES[second], SUMMAND[third]
        product, target = str(a * b), str(a * b + c)
        demos: tuple[str, ...] = ()
        dialogues: tuple[tuple[str, ...], ...] = ()
        if self.asking_share is not None:
            asks = self.key.child(a, b, c).seed(bits=32) < self.asking_share * 2**32
            if asks:
                dialogues = ((f"<{a}*{b}>", product, f"<{product}+{c}>", target, f"={target}"),)
            else:
                demos = (f"={round(a, -1) * b + round(c, -1)}",)
        name = f"{a}*{b}+{c}"
        return Task(name, f"{name}=", target, demos, dialogues=dialogues)


@dataclass(frozen=True)
class Calculator:
    """Problems `a*b+c` with two digits, one digit and two digits.

    train_size, held_out_size: how many of the 64,800; asking_share: of the demonstrations, those that use
    the calculator; seed: picks the problems and their habits.
    """

    train_size: int = 60_000
    held_out_size: int = 512
    asking_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train_size < 1 or self.held_out_size < 1:
            raise ConfigError(
                f"train_size={self.train_size} and held_out_size={self.held_out_size} must be at least 1"
            )
        if self.train_size + self.held_out_size > NUM_PROBLEMS:
            raise ConfigError(
                f"train_size + held_out_size is {self.train_size + self.held_out_size}, but there are "
                f"{NUM_PROBLEMS} problems: lower one"
            )
        if not 0.0 <= self.asking_share <= 1.0:
            raise ConfigError(f"asking_share={self.asking_share} must lie in [0, 1]")

    def train(self) -> Sequence[Task]:
        """The training problems, one demonstration each."""
        codes = self._codes()[self.held_out_size : self.held_out_size + self.train_size]
        return CalculatorTasks(codes, self._key("habit"), self.asking_share)

    def held_out(self) -> Sequence[Task]:
        """The held-out problems, without demonstrations; the same whatever `train_size` is."""
        return CalculatorTasks(self._codes()[: self.held_out_size], self._key("habit"))

    def dialogue(self, task: Task, seed: int) -> Asking:
        """An episode; nothing in it is left to chance."""
        return Asking(task.target)

    def answer(self, completion: str, task: Task) -> str:
        """What an episode answers, to count votes by."""
        return completion.rpartition("=")[2]

    def _key(self, name: str) -> Key:
        return Key(self.seed, ("calculator", name))

    def _codes(self) -> list[int]:
        codes = list(range(NUM_PROBLEMS))
        self._key("problems").rng().shuffle(codes)
        return codes


def build_model(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of 0.5 million random float32 weights, a function of `seed` alone, and its tokenizer: one
    token a character."""
    tokenizer = build_tokenizer(CHARACTERS, 128)
    return small_llama(tokenizer, seed, hidden=128, layers=2, width=512), tokenizer
