"""The fit of a law of forgetting: it finds a law that made the data, also where there were none."""

import itertools

import numpy as np
import pytest

from rlft.errors import ConfigError
from rlft.record.scaling import ScalingLaw, fit_scaling

TRUE = ScalingLaw(s=3.0, a=2e4, b=30.0, alpha=0.4, beta=0.5, rho=0.8)
POINTS = np.array(list(itertools.product((1e4, 4e4, 1.6e5, 6.4e5), (20, 50, 100, 200, 400))))


def test_a_law_is_recovered_and_extrapolates():
    p, n = POINTS.T
    found = fit_scaling(p, n, TRUE(p, n))
    assert found.rms < 1e-3
    assert found.explained > 0.9999
    assert found.law(2e6, 1000) == pytest.approx(TRUE(2e6, 1000), abs=0.05)


def test_noise_is_left_in_the_residual():
    p, n = POINTS.T
    noise = np.random.default_rng(0).normal(0, 0.02, len(p))
    found = fit_scaling(p, n, TRUE(p, n) + noise)
    assert 0.01 < found.rms < 0.025
    grid = np.array(list(itertools.product((2e4, 3e5), (30, 300)))).T
    assert np.abs(found.law(*grid) - TRUE(*grid)).max() < 0.05


def test_more_of_either_forgets_more():
    found = fit_scaling(*POINTS.T, TRUE(*POINTS.T)).law
    assert found(1e5, 100) > found(1e4, 100)
    assert found(1e5, 100) > found(1e5, 10)
    assert found(1e12, 1e12) == pytest.approx(found.s, abs=0.05)


def test_too_little_is_refused():
    p, n = POINTS.T
    with pytest.raises(ConfigError, match="at least 7 points with 3 different P and N"):
        fit_scaling(p[:6], n[:6], p[:6])
    with pytest.raises(ConfigError, match="got 10 with 2 and 5"):
        fit_scaling(p[:10], n[:10], p[:10])
    with pytest.raises(ConfigError, match="above 0, and every loss finite"):
        fit_scaling(p, n, np.where(p == 1e4, np.nan, 1.0))
