"""Countdown: combine given numbers with + - * / into a target.

The task and reward of Qiu et al., "Evolution Strategies at Scale" (arXiv:2509.24372), which took
them from TinyZero. Departures:

- Problems are generated here instead of read from the paper's file of 2,200 rows, so any number of
  them can be had and all are solvable with integer targets. Figures on the two are not comparable
  to the last per cent: the paper's test rows hold 58 targets that are negative or not integer. The
  reward accepts such targets.
- The prompt says that every number is used exactly once, which is what the reward demands.
- The answer is evaluated by a small exact evaluator (see `evaluate`) instead of Python's `eval`,
  so `**` and `//` score 0 (there, `9**9**9` hangs), as do answers of more than 200 characters.
- Only the completion is scored. Scoring the prompt as well, as one published script does, gives
  format credit for the example tags in the prompt.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rlft.arithmetic import value_of
from rlft.errors import ConfigError
from rlft.seeding import Key
from rlft.types import Task

PROMPT = (
    "You are a helpful assistant. You first think about the reasoning process in your mind and "
    "then provide the user with the answer.\n"
    "User: Using the numbers [{numbers}], create an equation that equals {target}. You can use "
    "basic arithmetic operations (+, -, *, /) and each number must be used exactly once. Show your "
    "work in <think> </think> tags. And return the final answer in <answer> </answer> tags, for "
    "example <answer> (1 + 2) / 3 </answer>.\n"
    "Assistant: Let me solve this step by step.\n<think>"
)
OPEN_THINK, CLOSE_THINK = "<think>", "</think>"
OPEN_ANSWER, CLOSE_ANSWER = "<answer>", "</answer>"
ALLOWED = re.compile(r"[0-9+\-*/() ]+")
MAX_ANSWER = 200
TOLERANCE = Fraction(1, 100_000)
PATIENCE = 20_000


@dataclass(frozen=True)
class Partial:
    """A value on the way to the target, how it is written, and the steps that made it."""

    value: int
    text: str
    steps: tuple[str, ...] = ()

    @property
    def operand(self) -> str:
        """The text, in parentheses unless it is a single number."""
        return f"({self.text})" if self.steps else self.text


@dataclass(frozen=True)
class Countdown:
    """Generated Countdown problems, each with a solution.

    numbers: how many numbers a problem may have, drawn uniformly; low, high: their range, both
    included; max_target: targets lie in `[1, max_target]`; train_size, held_out_size: how many
    problems each part has; seed: picks them. No two problems, within a part or across, have the
    same numbers (in any order) and target. The held-out part does not depend on `train_size`.
    """

    numbers: tuple[int, ...] = (3, 4)
    low: int = 1
    high: int = 99
    max_target: int = 100
    train_size: int = 2000
    held_out_size: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.numbers or not all(2 <= n <= 8 for n in self.numbers):
            raise ConfigError(f"numbers={self.numbers} must be a list of counts from 2 to 8")
        if not 1 <= self.low <= self.high <= 9999:
            raise ConfigError(
                f"low={self.low} and high={self.high} must fulfil 1 <= low <= high <= 9999"
            )
        if self.max_target < 1 or self.train_size < 1 or self.held_out_size < 1:
            raise ConfigError(
                f"max_target={self.max_target}, train_size={self.train_size} and "
                f"held_out_size={self.held_out_size} must be at least 1"
            )

    def train(self) -> Sequence[Task]:
        """The training problems, one demonstration each."""
        taken = dict.fromkeys(task.id for task in self.held_out())
        return self._problems("train", self.train_size, taken)

    def held_out(self) -> Sequence[Task]:
        """The held-out problems, one demonstration each."""
        return self._problems("held_out", self.held_out_size, {})

    def _problems(self, part: str, size: int, taken: dict[str, None]) -> list[Task]:
        """`size` distinct problems of which none is in `taken`."""
        tasks: list[Task] = []
        misses = 0
        for numbers, solution in self._solved(Key(self.seed, ("countdown", part)).rng()):
            task = make_task(numbers, solution)
            misses = misses + 1 if task.id in taken else 0
            if misses > PATIENCE:
                raise ConfigError(
                    f"only {len(tasks)} of {size} {part} problems could be found that are not "
                    "used yet: lower train_size or held_out_size, or widen low, high or max_target"
                )
            if not misses:
                taken[task.id] = None
                tasks.append(task)
            if len(tasks) == size:
                return tasks
        raise ConfigError(
            f"no problem was found in {PATIENCE} draws with numbers={self.numbers}, "
            f"low={self.low}, high={self.high} and max_target={self.max_target}: raise max_target "
            "or lower low"
        )

    def _solved(self, rng: random.Random) -> Iterator[tuple[list[int], Partial]]:
        """Numbers and a solution, drawn for ever; ends when `PATIENCE` draws in a row all fail."""
        failures = 0
        while failures < PATIENCE:
            numbers = [rng.randint(self.low, self.high) for _ in range(rng.choice(self.numbers))]
            solution = combine(numbers, rng)
            if solution.value <= self.max_target:
                failures = 0
                yield numbers, solution
            else:
                failures += 1


def combine(numbers: Sequence[int], rng: random.Random) -> Partial:
    """A random expression of all `numbers` whose intermediate results are positive integers."""
    left = [Partial(n, str(n)) for n in numbers]
    while len(left) > 1:
        a, b = (left.pop(rng.randrange(len(left))) for _ in range(2))
        if a.value < b.value:
            a, b = b, a
        results = {"+": a.value + b.value, "*": a.value * b.value}
        if a.value > b.value:
            results["-"] = a.value - b.value
        if a.value % b.value == 0:
            results["/"] = a.value // b.value
        op = rng.choice(sorted(results))
        step = f"{a.value} {op} {b.value} = {results[op]}"
        text = f"{a.operand} {op} {b.operand}"
        left.append(Partial(results[op], text, (*a.steps, *b.steps, step)))
    return left[0]


def make_task(numbers: Sequence[int], solution: Partial) -> Task:
    """The problem, its solution in `info`, and a demonstration that shows the steps.

    id: the sorted numbers and the target, `3,7,25=46`; target: the number as text; info: `numbers`
    as in the prompt, `solution` as an expression.
    """
    steps = "\n".join(solution.steps)
    return Task(
        id=f"{','.join(map(str, sorted(numbers)))}={solution.value}",
        prompt=PROMPT.format(numbers=", ".join(map(str, numbers)), target=solution.value),
        target=str(solution.value),
        demos=(f"\n{steps}\n{CLOSE_THINK}\n{OPEN_ANSWER}{solution.text}{CLOSE_ANSWER}",),
        info={"numbers": tuple(numbers), "solution": solution.text},
    )


def reward(completion: str, task: Task) -> dict[str, float]:
    """`reward = 0.1 * format + answer`, in [0, 1.1]; both parts are in [0, 1].

    The prompt ends in `<think>`, so that tag is put before the completion. A held-out accuracy is
    the mean of `answer`.
    """
    response = OPEN_THINK + completion
    form = format_score(response)
    answer = answer_score(response, task)
    return {"reward": 0.1 * form + answer, "format": form, "answer": answer}


def format_score(response: str) -> float:
    """1.0 for `<think>...</think>\\n<answer>...</answer>` and nothing else, else partial credit.

    Partial: 0.1 if there is a think block, plus 0.5 if there is an answer block. Equal to matching
    the paper's regular expressions, but linear in the length: those take quadratic time on a
    response that opens a tag many times.
    """
    text = response.removesuffix("\n")
    joint = CLOSE_THINK + "\n" + OPEN_ANSWER
    at = text.find(joint, len(OPEN_THINK))
    if (
        text.startswith(OPEN_THINK)
        and text.endswith(CLOSE_ANSWER)
        and 0 <= at <= len(text) - len(joint) - len(CLOSE_ANSWER)
    ):
        return 1.0
    has_think = any(True for _ in blocks(response, OPEN_THINK, CLOSE_THINK))
    has_answer = any(True for _ in blocks(response, OPEN_ANSWER, CLOSE_ANSWER))
    return 0.1 * has_think + 0.5 * has_answer


def blocks(text: str, opening: str, closing: str) -> Iterator[tuple[int, int]]:
    """(start, end) of what stands between each opening tag and the first closing tag after it."""
    end = 0
    while (start := text.find(opening, end)) >= 0:
        start += len(opening)
        stop = text.find(closing, start)
        if stop < 0:
            return
        yield start, stop
        end = stop + len(closing)


def answer_score(response: str, task: Task) -> float:
    """1.0 if the last answer uses each given number exactly once and gives the target, else 0.0."""
    found = list(blocks(response, OPEN_ANSWER, CLOSE_ANSWER))
    if not found:
        return 0.0
    answer = response[slice(*found[-1])].strip()
    if len(answer) > MAX_ANSWER or not ALLOWED.fullmatch(answer):
        return 0.0
    used = [int(digits) for digits in re.findall(r"[0-9]+", answer)]
    if sorted(used) != sorted(task.info["numbers"]):
        return 0.0
    try:
        value = evaluate(answer)
    except ValueError:
        return 0.0
    return float(abs(value - Fraction(task.target)) < TOLERANCE)


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression of integers, + - * / (also as signs) and parentheses.

    Raises ValueError for anything else, for division by zero and beyond `MAX_ANSWER` characters.
    That limit is checked first: it bounds nesting, the size of every number and hence the time.
    """
    if len(expression) > MAX_ANSWER or not ALLOWED.fullmatch(expression):
        raise ValueError(f"not an arithmetic expression of at most {MAX_ANSWER} characters")
    try:
        return value_of(ast.parse(expression.strip(), mode="eval").body, _integer)
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(str(error)) from error


def _integer(value: object) -> Fraction:
    if isinstance(value, int):
        return Fraction(value)
    raise ValueError("Constant is not allowed")
