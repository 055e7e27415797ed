"""The task of `benchmarks/poly_epo_passk.py`: its answers, strategies and reward."""

from pathlib import Path

import pytest

from rlft import registry
from rlft.types import Task

FILE = Path(__file__).resolve().parents[2] / "benchmarks/equations.py"


def attr(name):
    return registry.resolve("env", f"{FILE}:{name}")


def test_every_demonstration_is_right_and_parts_are_disjoint():
    env = registry.build("env", f"{FILE}:Equations")
    train, held_out = env.train(), env.held_out()
    reward, problems = attr("reward"), attr("problems")()
    for task in train:
        assert reward(task.demos[0], task)["reward"] == 1
    assert not {t.id for t in train} & {t.id for t in held_out}
    for task in held_out:
        digits, target = task.id.split("=")
        assert len(problems[digits, int(target)]) >= 2, "several right strategies"
    more = registry.build("env", {"name": f"{FILE}:Equations", "strategies": 1})
    assert list(more.held_out()) == list(held_out)
    assert len(more.train()) > 5 * len(train)


@pytest.mark.parametrize("text", ["1+2*3-4", "9*9*9*9", "5-6-7+8", "2*3+4*5"])
def test_the_value_is_that_of_arithmetic(text):
    assert attr("evaluate")(text) == eval(text)


@pytest.mark.parametrize(
    ("completion", "right", "cluster"),
    [
        ("4*7-3+9", 0, 21),
        ("3*9+4-7", 0, 21),
        ("4*9-3-7", 0, 9),
        ("3+9+4+9", 0, 48),
        ("7+9-3*4", 0, 21),
        ("9+3*4+4", 0, 33),
        ("9*3-7+4", 0, 21),
        ("4*7-9/3", 0, -1),
        ("", 0, -1),
        ("25", 0, -1),
        ("4+7+9+5", 1, 48),
        (" 5+9+7+4 ", 1, 48),
    ],
)
def test_the_reward(completion, right, cluster):
    task = Task("4579=25", "4579=25:", "25")
    assert attr("reward")(completion, task) == {"reward": right, "cluster": cluster}
