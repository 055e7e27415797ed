"""Diversity of sets of episodes, against slow versions from the papers' formulas (P3, P5, P6)."""

import itertools

import numpy as np
import pytest

from rlft import registry
from rlft.diversity import VINE_START, distinct_share, diversity_of, vendi_score
from rlft.errors import ConfigError, PluginError


def episode(*cells, since=None, **more):
    trace = np.array(cells, np.int32)
    traces = {"room": trace, "position": trace, **more}
    return traces if since is None else {**traces, VINE_START: np.array([since])}


A, B, C, D = (0, 0), (0, 1), (1, 0), (1, 1)


def random_set(rng, n, places=3, longest=12):
    return [
        episode(*rng.integers(0, places, (rng.integers(1, longest), 2)).tolist()) for _ in range(n)
    ]


def slow_distinct(traces, name):
    """(|U| / n) 1[|U| > 1], by comparing every pair."""
    sets = [{tuple(row) for row in t[name].tolist()} for t in traces]
    kept = []
    for one in sets:
        if not any(one == other for other in kept):
            kept.append(one)
    return len(kept) / len(sets) * (len(kept) > 1)


@pytest.mark.parametrize("name, trace", [("rooms", "room"), ("states", "position")])
def test_distinct_sets_against_all_pairs(name, trace):
    fn, rng = registry.build("diversity", name), np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 7))
        traces = random_set(rng, n)
        value = diversity_of(fn, traces)
        assert value == slow_distinct(traces, trace)
        assert value in {0.0, *(k / n for k in range(2, n + 1))}, "P6"
        order = rng.permutation(n)
        assert diversity_of(fn, [traces[i] for i in order]) == value, "P6: order does not matter"


@pytest.mark.parametrize("fn", ["rooms", "states", "vendi", {"name": "vendi", "kernel": "cosine"}])
def test_a_homogeneous_set_has_none_and_a_set_without_overlap_all(fn):
    """P3 and P5."""
    fn = registry.build("diversity", fn)
    assert diversity_of(fn, [episode(A, B)] * 4) == pytest.approx(0, abs=1e-9)
    assert diversity_of(fn, [episode(A)]) == 0
    assert diversity_of(fn, [episode(c, c) for c in (A, B, C, D)]) == pytest.approx(1)


def test_sets_not_sequences_count():
    fn = registry.build("diversity", "rooms")
    assert fn([episode(A, B, A), episode(B, A), episode(A, B)]) == 0
    assert fn([episode(A, B), episode(A, B), episode(A), episode(A, B, C)]) == 3 / 4
    assert fn([episode(A, B), episode(A, B), episode(A, B), episode(A)]) == 2 / 4


def test_rooms_before_the_rollout_state_count_only_if_asked_for():
    """With a common past, two vines that differ since may have visited the same rooms in all."""
    seen_before = [(A, B, C)]
    vines = [episode(*seen_before[0], *rest, since=2) for rest in ([C], [A, B], [C, A])]
    assert registry.build("diversity", "rooms")(vines) == 1  # {C}, {A, B, C}, {C, A}
    assert registry.build("diversity", {"name": "rooms", "since_vine": False})(vines) == 0
    assert registry.build("diversity", "rooms")([episode(A, since=0), episode(B, since=0)]) == 1


# -- the Vendi score -----------------------------------------------------------------------------


def slow_vendi_score(similarity):
    """exp(-tr(K log K)) of K/n, definition 3.1 in matrix form, with the logarithm as its power series
    -sum_m (1 - K)^m / m: no eigenvalues."""
    k = np.asarray(similarity, float) / len(similarity)
    rest, power, entropy = np.eye(len(k)) - k, k.copy(), 0.0
    for m in range(1, 4001):
        power = power @ rest
        entropy += np.trace(power) / m
    return float(np.exp(entropy))


def slow_kernel(traces, kernel):
    rows = [[tuple(r) for r in t["position"].tolist()] for t in traces]
    places = sorted({p for r in rows for p in r})
    counts = np.array([[r.count(p) for p in places] for r in rows], float)
    if kernel == "cosine":
        unit = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return unit @ unit.T
    met = counts > 0
    return (met[:, None] & met[None]).sum(2) / (met[:, None] | met[None]).sum(2)


@pytest.mark.parametrize("kernel", ["jaccard", "cosine"])
def test_vendi_against_the_matrix_logarithm(kernel):
    fn = registry.build("diversity", {"name": "vendi", "kernel": kernel})
    rng = np.random.default_rng(1)
    for _ in range(8):
        n = int(rng.integers(2, 7))
        traces = random_set(rng, n)
        similarity = slow_kernel(traces, kernel)
        assert np.linalg.eigvalsh(similarity).min() > -1e-9
        expected = (slow_vendi_score(similarity) - 1) / (n - 1)
        assert diversity_of(fn, traces) == pytest.approx(expected, abs=1e-3)


def test_the_vendi_score_counts_equally_different_things():
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.ones((5, 5))) == pytest.approx(1)
    assert vendi_score(np.kron(np.eye(2), np.ones((3, 3)))) == pytest.approx(2)


def test_vendi_sees_how_different():
    vendi = registry.build("diversity", "vendi")
    near, far = [episode(A, B), episode(A, C)], [episode(A, B), episode(C, D)]
    assert 0 < vendi(near) < vendi(far) == pytest.approx(1)


# -- what is refused -----------------------------------------------------------------------------


def test_a_trace_that_is_not_recorded_and_one_that_is_not_whole():
    with pytest.raises(ConfigError, match="It records: position, room"):
        registry.build("diversity", {"name": "rooms", "trace": "quadrant"})([episode(A)])
    with pytest.raises(ConfigError, match="Did you mean 'position'"):
        registry.build("diversity", {"name": "states", "trace": "positon"})([episode(A)])
    with pytest.raises(ConfigError, match="whole numbers"):
        registry.build("diversity", "rooms")([{"room": np.zeros((3, 1))}])
    with pytest.raises(ConfigError, match="unknown key 'tracs'"):
        registry.build("diversity", {"name": "rooms", "tracs": "room"})
    with pytest.raises(ConfigError, match="jaccard or cosine"):
        registry.build("diversity", {"name": "vendi", "kernel": "rbf"})([episode(A), episode(B)])


@pytest.mark.parametrize("answer", [1.5, -0.1, float("nan"), None, "much"])
def test_a_function_of_ones_own_is_held_to_0_to_1(answer):
    with pytest.raises(PluginError, match="expected a number from 0"):
        diversity_of(lambda traces: answer, [episode(A)])


def test_the_share_of_all_multisets_of_three_signatures():
    for signatures in itertools.product("abc", repeat=4):
        different = len({*signatures})
        assert distinct_share(signatures) == (0 if different == 1 else different / 4)


def test_numbers_a_step_may_come_without_an_axis():
    fn = registry.build("diversity", "rooms")
    assert fn([{"room": np.array([0, 1])}, {"room": np.array([1, 1])}]) == 1
