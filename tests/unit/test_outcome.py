"""From what a reward function says to an outcome; an error is never a number."""

import math
import pickle

import numpy as np
import pytest
import torch

from rlft.config import Rewards
from rlft.errors import Invalid
from rlft.rewards.functions import part_names
from rlft.rewards.outcome import score_one
from rlft.types import Task

TASK = Task("t", "prompt", target="42")


def says(answer):
    def fn(completion, task):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return fn


def outcome(*answers, weights=None, invalid=-1.0):
    weights = weights or [1.0] * len(answers)
    pairs = zip(answers, weights, strict=True)
    fns = [(f"f{i}", says(a), w) for i, (a, w) in enumerate(pairs)]
    return score_one(fns, "text", TASK, invalid)


@pytest.mark.parametrize(
    "answer, expected",
    [
        (0.5, 0.5),
        (3, 3.0),
        (-2.0, -2.0),
        (True, 1.0),
        (False, 0.0),
        (np.float32(0.25), 0.25),
        (np.int64(7), 7.0),
        (np.bool_(True), 1.0),
        (np.array(0.75), 0.75),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([2]), 2.0),
        ({"reward": 0.5, "other": 9.0}, 0.5),
        ({"a": 0.5, "b": 2}, 2.5),
        ({"reward": np.float64(1)}, 1.0),
    ],
    ids=repr,
)
def test_any_number_is_a_value_as_a_plain_float(answer, expected):
    result = outcome(answer)
    assert (result.kind, result.reward) == ("value", expected)
    assert type(result.reward) is float
    assert all(type(v) is float for v in result.parts.values())


def test_parts_are_kept_and_the_reward_itself_is_not_one_of_them():
    assert outcome({"reward": 1.0, "format": 0.5}).parts == {"format": 0.5}
    assert outcome({"a": 0.5, "b": 2.0}).parts == {"a": 0.5, "b": 2.0}
    assert outcome(0.5).parts == {}


@pytest.mark.parametrize(
    "answer, said",
    [
        (math.nan, "nan; expected a finite number"),
        (math.inf, "inf; expected a finite number"),
        (-math.inf, "finite"),
        (np.float32("nan"), "finite"),
        (torch.tensor(float("inf")), "finite"),
        ("1.0", "str '1.0'; expected a number"),
        (b"1", "bytes"),
        (None, "NoneType 'None'; expected a number"),
        ([1.0], "list"),
        (1 + 2j, "complex"),
        (np.ones(2), ""),
        (torch.ones(2), ""),
        ({}, "empty dict"),
        ({"reward": None}, "f0['reward']"),
        ({"reward": 1.0, "note": "good"}, "f0['note']"),
        ({"a": math.nan}, "f0['a']"),
    ],
    ids=repr,
)
def test_what_is_not_a_finite_number_is_an_error_that_quotes_it(answer, said):
    result = outcome(answer)
    assert (result.kind, result.reward) == ("error", None)
    assert said in result.reason


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), AssertionError("no")], ids=repr
)
def test_raising_is_an_error_with_its_traceback_and_never_a_number(error):
    result = outcome(error)
    assert (result.kind, result.reward) == ("error", None)
    assert result.reason.startswith("f0: Traceback") and type(error).__name__ in result.reason


def test_invalid_has_its_reason_and_the_configured_score():
    result = outcome(Invalid("no number"), invalid=-0.5)
    assert (result.kind, result.reward, result.reason) == ("invalid", -0.5, "no number")
    assert outcome(Invalid()).reason == "invalid"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_inside_a_reward_is_not_swallowed(stop):
    with pytest.raises(stop):
        outcome(stop())


def test_several_functions_add_up_by_weight_with_their_parts_told_apart():
    result = outcome({"reward": 1.0, "format": 0.5}, 3.0, {"a": 2.0}, weights=[2.0, 0.5, -1.0])
    assert result.reward == 2 * 1 + 0.5 * 3 - 2
    assert result.parts == {"f0/format": 0.5, "f2/a": 2.0}


@pytest.mark.parametrize("place", [0, 1])
def test_one_failure_among_several_functions_fails_the_whole(place):
    answers = [1.0, 1.0]
    answers[place] = ValueError("boom")
    result = outcome(*answers)
    assert (result.kind, result.reward) == ("error", None) and f"f{place}" in result.reason
    answers[place] = Invalid("bad")
    assert (outcome(*answers).kind, outcome(*answers).reward) == ("invalid", -1.0)


def test_a_sum_that_overflows_is_an_error_too():
    result = outcome(1e308, 1e308)
    assert (result.kind, result.reward) == ("error", None) and "inf" in result.reason


def test_functions_of_one_name_keep_their_parts_apart():
    fns = ["envs.countdown:reward", "gsm8k", "mine.py:reward"]
    names = part_names(Rewards(fns=[{"fn": fn} for fn in fns]))
    assert names[1] == "gsm8k" and len(set(names)) == 3


def test_the_completion_and_the_task_arrive_as_they_are():
    seen = []
    score_one(
        [("f", lambda completion, task: seen.append((completion, task)) or 0, 1)], "x", TASK, 0
    )
    assert seen == [("x", TASK)]


@pytest.mark.parametrize("answer", [1.0, Invalid("x"), ValueError("x")], ids=repr)
def test_outcomes_travel_between_processes_and_took_time(answer):
    result = outcome(answer)
    assert pickle.loads(pickle.dumps(result)) == result
    assert result.seconds > 0
