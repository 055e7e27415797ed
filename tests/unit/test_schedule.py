"""Coefficients over steps: monotone between their ends, and pure."""

import itertools

import pytest
from pydantic import ValidationError

from rlft.schedule import Decay, Schedule, value_at

KINDS = ("linear", "cosine", "exponential")
ENDS = [(1.0, 0.01), (0.001, 2.0), (3e-4, 3e-4)]


def schedule(kind, ends, steps=40, warmup=0):
    return Schedule(kind=kind, start=ends[0], end=ends[1], steps=steps, warmup=warmup)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 7])
def test_it_goes_from_end_to_end_without_turning_and_stays(kind, ends, warmup):
    values = [schedule(kind, ends, warmup=warmup)(s) for s in range(warmup, warmup + 60)]
    assert values[0] == pytest.approx(ends[0])
    assert values[40:] == pytest.approx([ends[1]] * 20)
    direction = 1 if ends[1] >= ends[0] else -1
    assert all((b - a) * direction >= -1e-15 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("kind", ["constant", *KINDS])
def test_warmup_rises_in_equal_parts_from_above_zero_to_the_start(kind):
    s = schedule(kind, (2.0, 1.0), warmup=9)
    values = [0.0, *(s(step) for step in range(10))]
    assert values[-1] == pytest.approx(2.0)
    rises = [b - a for a, b in itertools.pairwise(values)]
    assert rises == pytest.approx([0.2] * 10)


@pytest.mark.parametrize(
    "kind, half", [("linear", 2.5), ("cosine", 2.5), ("exponential", 2.0), ("constant", 4.0)]
)
def test_halfway(kind, half):
    assert schedule(kind, (4.0, 1.0), steps=10)(5) == pytest.approx(half)


def test_a_cosine_is_flat_at_its_ends_and_steepest_between():
    s = schedule("cosine", (1.0, 0.0), steps=100)
    falls = [s(i) - s(i + 1) for i in range(100)]
    assert falls[0] < 0.05 * falls[50] and falls[99] < 0.05 * falls[50]
    assert falls == pytest.approx(falls[::-1])


def test_an_exponential_falls_by_the_same_factor_each_step():
    values = [schedule("exponential", (1.0, 1e-4))(i) for i in range(41)]
    factors = [b / a for a, b in itertools.pairwise(values)]
    assert factors == pytest.approx([factors[0]] * 40)


def test_without_an_end_it_stays_at_its_start():
    assert {Schedule(start=3.0, steps=5)(i) for i in range(9)} == {3.0}


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0), (-1.0, None)])
def test_an_exponential_through_zero_is_refused_before_it_is_used(ends):
    with pytest.raises(ValidationError, match="positive ends"):
        Schedule(kind="exponential", start=ends[0], end=ends[1])


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"warmup": -1}, {"kind": "cubic"}, {"from": float("nan")}, {"too": 1}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValidationError):
        Schedule.model_validate({"from": 1.0, "to": 0.0, **wrong})


def test_a_number_is_the_same_at_every_step():
    assert {value_at(0.5, step) for step in range(5)} == {0.5}
    assert value_at(Schedule(start=1.0, end=0.0, steps=4), 1) == 0.75


def test_a_decay_falls():
    assert Decay.model_validate({"from": 0.5, "factor": 0.5, "floor": 0.5})(3) == 0.5
    with pytest.raises(ValidationError, match=r"got from 0\.1 and floor 0\.5"):
        Decay.model_validate({"from": 0.1, "factor": 0.5, "floor": 0.5})
