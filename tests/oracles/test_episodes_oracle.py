"""Evaluation numbers against enumeration and plain loops."""

import itertools

import numpy as np
import pytest

from rlft.record.episodes import evaluation, pass_curve, pass_gap, visited_share
from rlft.record.intervals import interval


def coin(rng, s, c, r):
    """Configurations of different difficulty."""
    return rng.random((s, c, r)) < rng.random((1, c, 1))


def test_pass_at_k_is_the_mean_over_all_subsets():
    won = coin(np.random.default_rng(0), 2, 3, 6)
    curve = pass_curve(won, range(1, 7))
    for s, c, k in itertools.product(range(2), range(3), range(1, 7)):
        subsets = list(itertools.combinations(won[s, c], k))
        assert curve[s, c, k - 1] == pytest.approx(np.mean([any(x) for x in subsets]))


def test_the_ends_of_the_curve_are_success_and_coverage():
    rng = np.random.default_rng(1)
    won = coin(rng, 3, 50, 100)
    found = evaluation(rng.random((3, 50, 100)), won, draws=200)
    assert found.ks == tuple(range(1, 101))
    assert found.pass_at.value[0] == pytest.approx(found.success.value) == pytest.approx(won.mean())
    assert found.pass_at.value[-1] == pytest.approx(found.coverage.value)
    assert found.coverage.value == np.mean([[any(r) for r in c] for c in won])
    assert (np.diff(found.pass_at.value) >= -1e-12).all(), "pass@k never falls with k"
    assert (found.pass_at.low <= found.pass_at.value).all()
    assert (found.pass_at.value <= found.pass_at.high).all()


def slow_interval(values, level, draws, rng):
    """Seeds and configurations drawn by index, one resample after the other."""
    s, c = values.shape
    means = []
    for _ in range(draws):
        seeds, configs = rng.integers(0, s, s), rng.integers(0, c, c)
        means.append(np.mean([[values[i, j] for j in configs] for i in seeds]))
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2])


def test_the_interval_against_resampling_by_index():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(3, 1)) * 0.5 + rng.normal(size=(1, 12)) + rng.normal(size=(3, 12))
    found = interval(values, level=0.9, draws=40_000)
    low, high = slow_interval(values, 0.9, 4000, np.random.default_rng(3))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.04)
    assert found.high == pytest.approx(high, abs=0.04)


def test_a_curve_has_the_interval_of_each_of_its_points():
    rng = np.random.default_rng(4)
    values = rng.random((3, 10, 4))
    whole = interval(values, draws=500)
    for k in range(4):
        alone = interval(values[:, :, k], draws=500)
        assert (whole.low[k], whole.value[k], whole.high[k]) == pytest.approx(
            (alone.low, alone.value, alone.high)
        )


def test_without_spread_the_interval_is_a_point():
    found = interval(np.full((3, 5), 0.25))
    assert (found.low, found.value, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_covers_the_truth_at_least_as_often_as_it_says():
    """Crossed effects of seeds and configurations, known mean 0."""
    rng = np.random.default_rng(5)
    hits = 0
    for case in range(200):
        values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(8, 30))
        found = interval(values, draws=300, seed=case)
        hits += found.low <= 0 <= found.high
    # Percentile intervals of 8 seeds are a little short of 95%; the crossed draw adds width.
    assert hits / 200 > 0.88


def test_the_gap_to_another_policy_is_paired_by_configuration():
    rng = np.random.default_rng(6)
    before = coin(rng, 1, 40, 20)
    same = pass_gap(np.repeat(before, 3, 0), before, [1, 5, 20])
    assert np.array_equal(same.value, np.zeros(3))
    assert np.array_equal(same.high, np.zeros(3))
    worse = pass_gap(np.zeros((3, 40, 20)), before, [1, 20])
    assert (worse.high < 0).all()
    with pytest.raises(ValueError, match="same seeds and configurations"):
        pass_gap(before, coin(rng, 1, 39, 20), [1])


def test_coverage_of_places():
    traces = [{"room": np.array([[0, 0], [0, 1]])}, {"room": np.array([[0, 1], [1, 1], [0, 1]])}]
    assert visited_share(traces, "room", 4) == 3 / 4
    assert visited_share([{"cell": np.array([3, 3, 5])}], "cell", 10) == 0.2
    with pytest.raises(ValueError, match="more than the 2"):
        visited_share(traces, "room", 2)
    with pytest.raises(ValueError, match="at least one"):
        visited_share([], "room", 2)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: interval(np.zeros(3)), r"\[S, C\]"),
        (lambda: interval(np.zeros((0, 3))), "none of them 0"),
        (lambda: interval(np.array([[np.nan]])), "finite"),
        (lambda: interval(np.zeros((1, 1)), level=1), "level"),
        (lambda: evaluation(np.zeros((1, 2, 3)), np.zeros((1, 2, 4))), r"\[S, C, R\]"),
        (lambda: pass_curve(np.zeros((1, 1, 3)), [4]), "1 <= k <= num"),
    ],
)
def test_what_cannot_be_evaluated(call, said):
    with pytest.raises(ValueError, match=said):
        call()
