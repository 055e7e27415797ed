"""Countdown: problems are solvable, distinct and repeatable; the reward is the paper's and safe."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from fractions import Fraction

import pytest

from envs.countdown import (
    MAX_ANSWER,
    Countdown,
    answer_score,
    evaluate,
    format_score,
    reward,
)
from rlft.errors import ConfigError
from rlft.types import Task

TASK = Task(id="t", prompt="", target="20", info={"numbers": (2, 3, 4)})
RIGHT = " thought </think>\n<answer>(2 + 3) * 4</answer>"


def answered(answer: str) -> str:
    return f"x</think>\n<answer>{answer}</answer>"


@pytest.fixture(scope="module")
def env() -> Countdown:
    return Countdown(train_size=400, held_out_size=150, seed=3)


def test_train_and_held_out_share_no_problem(env):
    def problems(tasks):
        return [(tuple(sorted(t.info["numbers"])), t.target) for t in tasks]

    train, held_out = problems(env.train()), problems(env.held_out())
    assert (len(set(train)), len(set(held_out))) == (400, 150)
    assert not set(train) & set(held_out)


def test_disjoint_even_where_problems_are_few():
    env = Countdown(numbers=(2,), low=1, high=9, train_size=60, held_out_size=30)
    assert not {t.id for t in env.train()} & {t.id for t in env.held_out()}


def test_same_seed_same_tasks_and_another_seed_others(env):
    assert list(env.train()) == list(Countdown(train_size=400, held_out_size=150, seed=3).train())
    other = Countdown(train_size=400, held_out_size=150, seed=4)
    assert {t.id for t in env.train()} != {t.id for t in other.train()}


def test_held_out_does_not_depend_on_train_size(env):
    assert list(env.held_out()) == list(
        Countdown(train_size=7, held_out_size=150, seed=3).held_out()
    )


def test_every_task_is_within_its_stated_range_and_can_be_solved():
    env = Countdown(numbers=(3, 4, 5), low=2, high=50, max_target=60, train_size=300)
    for task in [*env.train(), *env.held_out()]:
        numbers = task.info["numbers"]
        assert len(numbers) in env.numbers and all(2 <= n <= 50 for n in numbers)
        assert 1 <= int(task.target) <= 60
        used = [int(n) for n in re.findall(r"\d+", task.info["solution"])]
        assert Counter(used) == Counter(numbers)
        assert evaluate(task.info["solution"]) == int(task.target)
        assert reward(answered(task.info["solution"]), task)["reward"] == 1.1
        assert reward(task.demos[0], task)["reward"] == 1.1


def test_intermediate_results_are_integers():
    for task in Countdown(train_size=200).train():
        for step in task.demos[0].split("</think>")[0].split("\n")[1:-1]:
            left, result = step.split(" = ")
            assert evaluate(left) == int(result) >= 1


def test_prompt_names_the_problem_and_ends_inside_the_thought(env):
    task = env.train()[0]
    assert task.prompt.endswith("Let me solve this step by step.\n<think>")
    assert f"[{', '.join(map(str, task.info['numbers']))}]" in task.prompt
    assert f"equals {task.target}." in task.prompt


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (RIGHT, 1.1),
        # The same without the line break between the blocks: 1 + 0.1 * (0.1 + 0.5).
        (RIGHT.replace("\n", ""), 1.06),
        (RIGHT + " Done.", 1.06),
        (answered("2 + 3 + 4"), 0.1),
        ("<answer>(2 + 3) * 4</answer>", 1.05),
        ("</think>", 0.01),
        ("no tags", 0.0),
        ("", 0.0),
    ],
)
def test_golden_values(completion, expected):
    assert reward(completion, TASK)["reward"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(2+3)*4", 1),
        ("\n (2+3)*4 \n", 1),
        ("4*(3--2)", 1),
        ("2*3*4", 0),
        ("(2+3)*4*1", 0),
        ("(2+3)*(2+2)", 0),
        ("4*5", 0),
        ("20", 0),
        ("(2+3)*4 = 20", 0),
        ("(2+3)x4", 0),
        ("(2+03)*4", 0),
        ("(2+3)(4)", 0),
        ("(2+3)**4", 0),
        ("(2+3)//4", 0),
        ("", 0),
    ],
)
def test_answer_must_use_each_number_once_and_hit_the_target(answer, expected):
    assert answer_score(f"<answer>{answer}</answer>", TASK) == expected


def test_only_the_last_answer_counts():
    right, wrong = "<answer>(2+3)*4</answer>", "<answer>2+3+4</answer>"
    assert answer_score(wrong + right, TASK) == 1
    assert answer_score(right + wrong, TASK) == 0


@pytest.mark.parametrize(
    ("numbers", "target", "answer"),
    [
        ((137, 5), "27.4", "137/5"),
        ((3, 5), "-2", "3-5"),
        ((1, 3), "0.333334", "1/3"),
        ((7, 7), "1", "7/7"),
    ],
)
def test_targets_may_be_negative_or_fractional(numbers, target, answer):
    task = Task(id="t", prompt="", target=target, info={"numbers": numbers})
    assert reward(answered(answer), task)["answer"] == 1


def test_evaluation_is_exact():
    assert evaluate("1/3 + 1/3 + 1/3") == 1
    assert evaluate("-(2 - 5) * +4 / 6") == 2
    assert evaluate("1/7") == Fraction(1, 7)


REFUSED = ["9**9**9", "9**9", "1/0", "1//2", "", "()", "1 2", "(1", "1)", "*1", "1+", "a", "1.5"]
REFUSED += ["(" * 100_000 + "1" + ")" * 100_000, "9" * 10**6, "-" * 10**6 + "1", "1" + "+1" * 10**6]
REFUSED += ["(" * MAX_ANSWER, "()" * (MAX_ANSWER // 2), "٣+1", "1\n+1", "1\0", "1_0"]


@pytest.mark.parametrize("expression", REFUSED, ids=lambda text: repr(text[:20]))
def test_evaluate_refuses_at_once(expression):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"."):
        evaluate(expression)
    assert time.perf_counter() - start < 0.5


def test_deepest_accepted_expressions():
    half = (MAX_ANSWER - 1) // 2
    assert evaluate("(" * half + "1" + ")" * half) == 1
    assert evaluate("-" * (MAX_ANSWER - 1) + "1") == -1


PIECES = [
    "</think>\n<answer>",
    "(2+3)*4</answer>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "\n",
    " ",
    "(2+3)*4",
    "9**9**9",
    "1/0",
]
PIECES += ["é☃", "\0", "\ud800", "((((", "٣", "<", "=", "20"]


def format_by_regex(response: str) -> float:
    """The paper's regular expressions, as published."""
    if re.match(r"^<think>.*?</think>\n<answer>.*?</answer>$", response, re.DOTALL):
        return 1.0
    has_think = re.search(r"<think>.*?</think>", response, re.DOTALL)
    has_answer = re.search(r"<answer>.*?</answer>", response, re.DOTALL)
    return 0.1 * bool(has_think) + 0.5 * bool(has_answer)


def last_answer_by_regex(response: str) -> str | None:
    found = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    return found[-1] if found else None


def test_junk_scores_like_the_published_expressions_and_never_raises():
    rng = random.Random(0)
    scores = Counter()
    for _ in range(5000):
        completion = "".join(rng.choices(PIECES, k=rng.randrange(9)))
        response = "<think>" + completion
        parts = reward(completion, TASK)
        assert parts["format"] == format_score(response) == format_by_regex(response)
        last = last_answer_by_regex(response)
        assert parts["answer"] == float(last is not None and last.strip() == "(2+3)*4")
        scores[parts["format"], parts["answer"]] += 1
    assert all(scores[key] for key in [(1.0, 1.0), (0.1, 0.0), (0.5, 1.0), (0.6, 0.0), (0.0, 0.0)])


@pytest.mark.parametrize(
    "completion",
    [
        "x" * 10**6,
        "<answer>" * 125_000,
        "<think>" * 150_000,
        "</think>\n<answer>" * 60_000,
        "<answer></answer>" * 60_000,
        answered("9**9**9"),
        answered("1" * 10**6),
        answered("(" * 100_000 + "1" + ")" * 100_000),
        answered("(2+3)*4" + " " * 10**6),
        answered("2" + "0" * 150 + "/0"),
        "".join(map(chr, range(0x3000))),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_hostile_completions_are_scored_at_once(completion):
    start = time.perf_counter()
    parts = reward(completion, TASK)
    assert time.perf_counter() - start < 1.0
    assert 0.0 <= parts["reward"] <= 1.1


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"numbers": ()}, "numbers"),
        ({"numbers": (1,)}, "numbers"),
        ({"low": 0}, "low"),
        ({"low": 5, "high": 4}, "high"),
        ({"train_size": 0}, "train_size"),
        ({"max_target": 0}, "max_target"),
    ],
)
def test_unusable_keys_are_refused_by_name(keys, word):
    with pytest.raises(ConfigError, match=word):
        Countdown(**keys)


def test_more_problems_than_exist_is_an_error():
    with pytest.raises(ConfigError, match="lower train_size"):
        Countdown(numbers=(2,), low=1, high=3, train_size=500, held_out_size=2).train()
    with pytest.raises(ConfigError, match="raise max_target"):
        Countdown(numbers=(3,), low=50, high=50, max_target=1).train()
