"""A law of forgetting over the number of trained parameters and of steps, fitted to a sweep.

    L(P, N) = s - [(a / P)^alpha + (b / N)^beta]^rho

A shifted power law, form as we fit it: "Scaling Laws for Forgetting When Fine-Tuning Large Language Models"
(arXiv 2401.05605) reports that forgetting grows as one in both, and we do not quote its constants. A factor
before the bracket would be one too many: it goes into a and b. `s` is the forgetting that neither more
parameters nor more steps exceed, and far from it the fit says little about `s`.

Nonlinear least squares (Levenberg and Marquardt) from several starts, in numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """Forgetting, nats a token, as a function of trained parameters P and optimizer steps N."""

    s: float
    a: float
    b: float
    alpha: float
    beta: float
    rho: float

    def __call__(
        self, parameters: float | np.ndarray, steps: float | np.ndarray
    ) -> float | np.ndarray:
        """The law at P, N above 0."""
        left = (self.a / np.asarray(parameters, float)) ** self.alpha
        right = (self.b / np.asarray(steps, float)) ** self.beta
        return self.s - (left + right) ** self.rho


@dataclass(frozen=True, slots=True)
class Fit:
    """rms: root of the mean squared residual, nats; explained: the share of the variance."""

    law: ScalingLaw
    rms: float
    explained: float


def fit_scaling(
    parameters: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
) -> Fit:
    """The law nearest to the losses `[n]` of runs with so many trained parameters and steps `[n]`.

    Raises ConfigError: fewer than 7 points (it has 6 numbers), fewer than 3 different P or N, one that is
    not above 0, or a loss that is not finite.
    """
    p, n, y = (np.asarray(x, float) for x in (parameters, steps, loss))
    if not p.shape == n.shape == y.shape or p.ndim != 1:
        raise ConfigError(f"expected three rows of one length, got {p.shape}, {n.shape}, {y.shape}")
    if len(y) < 7 or len(set(p)) < 3 or len(set(n)) < 3:
        raise ConfigError(
            f"a law of 6 numbers needs at least 7 points with 3 different P and N; got {len(y)} with "
            f"{len(set(p))} and {len(set(n))}"
        )
    if not (np.isfinite(y).all() and (p > 0).all() and (n > 0).all()):
        raise ConfigError("P and N must be above 0, and every loss finite")
    spread = max(float(y.max() - y.min()), 1e-9)
    best: tuple[float, np.ndarray] | None = None
    for alpha, rho, above in itertools.product((0.3, 1.0), (0.5, 1.0), (0.1, 1.0)):
        first = np.array([
            np.log(above * spread), np.log(np.median(p)), np.log(np.median(n)),
            np.log(alpha), np.log(alpha), np.log(rho),
        ])  # fmt: skip
        found = _least_squares(first, p, n, y)
        error = float((_residuals(found, p, n, y) ** 2).sum())
        if best is None or error < best[0]:
            best = (error, found)
    assert best is not None
    error, found = best
    total = float(((y - y.mean()) ** 2).sum())
    return Fit(
        _law(found, y),
        float(np.sqrt(error / len(y))),
        1 - error / total if total else float("nan"),
    )


def _law(x: np.ndarray, y: np.ndarray) -> ScalingLaw:
    """From logarithms: s above the largest loss, everything else above 0."""
    above, *rest = np.exp(np.clip(x, -30, 30)).tolist()
    return ScalingLaw(float(y.max()) + above, *rest)


def _residuals(x: np.ndarray, p: np.ndarray, n: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = np.asarray(_law(x, y)(p, n)) - y
    return np.where(np.isfinite(found), found, 1e6)


def _least_squares(
    x: np.ndarray, p: np.ndarray, n: np.ndarray, y: np.ndarray, rounds: int = 300
) -> np.ndarray:
    damping, r = 1e-2, _residuals(x, p, n, y)
    for _ in range(rounds):
        step = 1e-6
        slopes = np.stack(
            [(_residuals(x + step * e, p, n, y) - r) / step for e in np.eye(len(x))], axis=1
        )
        hessian = slopes.T @ slopes
        move = np.linalg.lstsq(
            hessian + damping * (np.diag(np.diag(hessian)) + 1e-12 * np.eye(len(x))),
            -slopes.T @ r,
            rcond=None,
        )[0]
        new = x + np.clip(move, -2, 2)
        again = _residuals(new, p, n, y)
        if (again**2).sum() < (r**2).sum():
            gained = 1 - (again**2).sum() / max((r**2).sum(), 1e-300)
            x, r, damping = new, again, max(damping / 3, 1e-9)
            if gained < 1e-10:
                break
        else:
            damping *= 4
            if damping > 1e9:
                break
    return x
