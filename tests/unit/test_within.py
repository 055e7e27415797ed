"""The quick question is Gymnasium's own, and asks for finite numbers too."""

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from rlft.sampling.within import blank, numbers_within, shaped, within

SPACES = [
    spaces.Box(-1, 1, (3,), np.float32),
    spaces.Box(np.array([-1, 0, -np.inf]), np.array([1, 5, np.inf]), dtype=np.float64),
    spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(0, 10, (7, 7, 3), np.uint8),
    spaces.Box(0, 30, (5,), np.int32),
    spaces.Box(2.0, 3.0, (), np.float32),
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([3, 3, 7]),
    spaces.MultiDiscrete([6, 6], dtype=np.int32),
    spaces.MultiDiscrete([4, 4, 4], start=[2, 2, 2]),
    spaces.MultiBinary(5),
    spaces.Dict({"a": spaces.Box(1, 2, (2,), np.float32), "b": spaces.Discrete(3)}),
]


def changed(x, rng):
    """`x` made into something else."""
    if isinstance(x, dict):
        name = str(rng.choice(sorted(x)))
        yield {**x, name: None}
        yield {n: v for n, v in x.items() if n != name}
        for other in changed(x[name], rng):
            yield {**x, name: other}
        return
    x = np.asarray(x)
    yield x + x.dtype.type(100)
    yield x - x.dtype.type(3)
    yield np.stack([x, x])
    yield x.astype(np.float64) + 0.5
    yield x.astype(np.complex64)
    yield "text"


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_it_says_what_contains_says(space):
    space.seed(0)
    check, rng = within(space), np.random.default_rng(0)
    for _ in range(20):
        x = space.sample()
        assert check(x) and space.contains(x)
        for other in changed(x, rng):
            assert check(other) == space.contains(other), other
    assert space.contains(blank(space)) and check(blank(space))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_outside(value):
    for space in (SPACES[0], SPACES[1], SPACES[2], SPACES[-1]):
        x = blank(space)
        (x["a"] if isinstance(x, dict) else x).flat[-1] = value
        assert not within(space)(x)


def test_a_box_of_truths_has_no_numbers_to_compare():
    check = within(spaces.Box(0, 1, (3,), np.bool_))
    assert check(np.array([True, False, True]))
    assert not check(np.array([1.0, 0.0, 2.0]))
    assert not check(np.array([True]))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_batch_is_within_where_each_of_it_is(space):
    space.seed(1)
    alone, numbers, rng = shaped(space), numbers_within(space), np.random.default_rng(1)

    def stacked(xs):
        return concatenate(space, xs, create_empty_array(space, len(xs)))

    asked = 0
    for _ in range(20):
        good = [space.sample() for _ in range(3)]
        assert numbers(stacked(good))
        for bad in changed(good[1], rng):
            whole = isinstance(space, spaces.Dict) or np.can_cast(
                np.asarray(bad).dtype, space.dtype
            )
            if alone(bad) and whole:  # other shapes and types never reach a batch
                assert numbers(stacked([good[0], bad, good[2]])) == within(space)(bad), bad
                asked += 1
    if space in (SPACES[0], SPACES[4], SPACES[-1]):
        assert asked
