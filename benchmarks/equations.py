"""Four digits to be combined into a number: a task with several right strategies, for `poly_epo_passk.py`.

The prompt is `4579=25:`; `4+5+7+9` is a right answer: an expression of exactly
these digits, in any order, with + - * between them (no parentheses, products first) that equals 25.
Which operators are used is the *strategy*: `4*7-3` and `7*4-3` follow the same one. A task has at least
`strategies` right ones. Problems are enumerated, not drawn, so every right answer is known.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from envs.addition import build_tokenizer
from rlft.policy.small import small_llama
from rlft.seeding import Key
from rlft.types import Task

OPERATORS = "+-*"
CHARACTERS = "0123456789=:" + OPERATORS
ANSWER = re.compile(rf"[1-9](?:[{re.escape(OPERATORS)}][1-9])*")
HIGHEST = 99


@dataclass(frozen=True)
class Equations:
    """strategies: right strategies that each task has at least; train_size: tasks to train on, None: all
    that are not held out; held_out_size: of those with two strategies or more; seed: picks and orders
    them. The held-out tasks are the same whatever `strategies` and `train_size` are."""

    strategies: int = 2
    train_size: int | None = None
    held_out_size: int = 256
    seed: int = 0

    def train(self) -> Sequence[Task]:
        """Each with one right answer, of a strategy drawn first and then at random, as demonstration."""
        held = {task.id for task in self.held_out()}
        enough = [k for k, right in problems().items() if len(right) >= self.strategies]
        left = [key for key in enough if name(key) not in held]
        Key(self.seed, ("equations", "train")).rng().shuffle(left)
        return [self._task(key, True) for key in left[: self.train_size]]

    def held_out(self) -> Sequence[Task]:
        """Without demonstrations."""
        several = [key for key, right in problems().items() if len(right) >= 2]
        Key(self.seed, ("equations", "held_out")).rng().shuffle(several)
        return [self._task(key, False) for key in several[: self.held_out_size]]

    def answer(self, completion: str, task: Task) -> str:
        """What a completion answers, to count votes by."""
        return completion.strip()

    def _task(self, key: tuple[str, int], shown: bool) -> Task:
        demos: tuple[str, ...] = ()
        if shown:
            rng = Key(self.seed, ("equations", "demo", name(key))).rng()
            right = problems()[key]
            demos = (rng.choice(right[rng.choice(sorted(right))]),)
        return Task(id=name(key), prompt=f"{name(key)}:", target=str(key[1]), demos=demos)


def name(key: tuple[str, int]) -> str:
    """`3479=25`."""
    return f"{key[0]}={key[1]}"


@cache
def problems() -> dict[tuple[str, int], dict[str, list[str]]]:
    """For each `(digits, target)` the right answers by strategy."""
    found: dict[tuple[str, int], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for digits in itertools.combinations_with_replacement("123456789", 4):
        orders = sorted(set(itertools.permutations(digits)))
        for order, signs in itertools.product(orders, itertools.product(OPERATORS, repeat=3)):
            text = order[0] + "".join(
                sign + digit for sign, digit in zip(signs, order[1:], strict=True)
            )
            value = evaluate(text)
            if 1 <= value <= HIGHEST:
                found["".join(digits), value]["".join(sorted(signs))].append(text)
    return {key: dict(right) for key, right in found.items()}


def evaluate(text: str) -> int:
    """The value of an answer of the right form: products first, then from the left."""
    total, sign = 0, 1
    for part in re.split("([+-])", text):
        if part in "+-":
            sign = 1 if part == "+" else -1
        else:
            total += sign * math.prod(int(factor) for factor in part.split("*"))
    return total


def reward(completion: str, task: Task) -> dict[str, float]:
    """`reward`: 1 if right. `cluster`: the strategy as a number, -1 for what is no expression of four
    digits."""
    text = completion.strip()
    if len(text) != 7 or not ANSWER.fullmatch(text):
        return {"reward": 0.0, "cluster": -1.0}
    digits = "".join(sorted(text[::2]))
    right = digits == task.id.split("=")[0] and evaluate(text) == int(task.target)
    return {"reward": float(right), "cluster": float(strategy(text))}


def strategy(text: str) -> int:
    """Which operators an answer uses, as a number: `4*7-3` and `7*4-3` are the same."""
    counts = [text.count(operator) for operator in OPERATORS]
    return counts[0] * 16 + counts[1] * 4 + counts[2]


def build_model(seed: int) -> Any:
    """A Llama of 1.3 million random weights and a tokenizer of one token a character."""
    tokenizer = build_tokenizer(CHARACTERS, max_length=32)
    return small_llama(tokenizer, seed, hidden=160, layers=4, width=480), tokenizer
