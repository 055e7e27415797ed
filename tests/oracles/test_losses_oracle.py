"""Losses against loops written from the papers, and their gradients by finite differences.

The loops work on one decision at a time with Python floats; whole objectives (GRPO, DAPO,
Dr. GRPO) are compared after reduction, so weights and denominators are tested with them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import LENGTHS, ROWS, WIDTH, case, decisions, finite_differences

from rlft.losses import (
    ClippedSurrogate,
    KLToReference,
    NegativeLogLikelihood,
    SequenceMask,
    SequenceTruncate,
    TokenMask,
    TokenTruncate,
    decision_weight,
    denominator,
    mismatch,
)
from rlft.losses.corrected import Corrected
from rlft.types import Batch, PolicyOut

MAX_LEN = 10


def paper_clipped(
    logp: float, old: float, adv: float, low: float, high: float, dual: float | None
) -> float:
    """PPO's objective by the sign of the advantage, negated; dual clip: arXiv 1912.09729."""
    w = math.exp(logp - old)
    if adv >= 0:
        return -min(w, 1 + high) * adv
    objective = max(w, 1 - low) * adv
    return -(objective if dual is None else max(objective, dual * adv))


def paper_weight(kind: str, gaps: list[float], t: int) -> float:
    """TIS (cap 1.2) and IcePop / MIS (window 0.8 to 1.25), for a token or for its sequence."""
    rho = math.exp(sum(gaps)) if kind.startswith("sequence") else math.exp(gaps[t])
    if kind.endswith("truncate"):
        return min(rho, 1.2)
    return rho if 0.8 <= rho <= 1.25 else 0.0


CORRECTIONS: dict[str, Any] = {
    "token_truncate": TokenTruncate(1.2),
    "token_mask": TokenMask(0.8, 1.25),
    "sequence_truncate": SequenceTruncate(1.2),
    "sequence_mask": SequenceMask(0.8, 1.25),
}


def gaps_of(batch: Batch, b: int) -> list[float]:
    return [float(batch.old_logp[b, t] - batch.sample_logp[b, t]) for t in range(LENGTHS[b])]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dual", [None, 1.3])
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_surrogate_and_its_gradient(kind: str, dual: float | None, seed: int) -> None:
    out, batch = case(seed)
    surrogate = ClippedSurrogate(0.1, 0.28, dual_clip=dual)
    loss_fn = Corrected(surrogate, (CORRECTIONS[kind],))
    loss_BT, diagnostics = loss_fn(out, batch)

    def paper(logp_BT: np.ndarray) -> np.ndarray:
        expected = np.zeros((ROWS, WIDTH))
        for b, t in decisions():
            weight = paper_weight(kind, gaps_of(batch, b), t) if batch.on_policy[b] else 1.0
            expected[b, t] = weight * paper_clipped(
                logp_BT[b, t], float(batch.old_logp[b, t]), float(batch.adv[b, t]), 0.1, 0.28, dual
            )
        return expected

    logp_BT = out.logp.detach().numpy()
    np.testing.assert_allclose(loss_BT.detach().numpy(), paper(logp_BT), rtol=1e-9)
    loss_BT.sum().backward()
    slope_BT = finite_differences(lambda x: float(paper(x).sum()), logp_BT)
    np.testing.assert_allclose(out.logp.grad.numpy(), slope_BT, rtol=1e-6, atol=1e-8)
    # A decision counts as clipped exactly when its (unweighted) objective is flat.
    weighted = diagnostics["is_weight"].numpy() > 0
    flat = (slope_BT == 0) & batch.mask.numpy()
    np.testing.assert_array_equal(diagnostics["clip_fraction"].numpy()[weighted], flat[weighted])


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_correction_weights(kind: Any) -> None:
    weights_seen = set()
    for seed in range(5):
        _, batch = case(seed)
        got = CORRECTIONS[kind](batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
        expected = np.zeros((ROWS, WIDTH))
        for b, t in decisions():
            expected[b, t] = paper_weight(kind, gaps_of(batch, b), t) if batch.on_policy[b] else 1.0
            weights_seen.add(round(expected[b, t], 3))
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    assert {1.2} <= weights_seen if kind.endswith("truncate") else {0.0} <= weights_seen


def test_mismatch() -> None:
    _, batch = case()
    got = mismatch(batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
    expected_kl, expected_gap = np.zeros((ROWS, WIDTH)), np.zeros((ROWS, WIDTH))
    for b, t in decisions():
        if batch.on_policy[b]:
            r = math.exp(batch.old_logp[b, t]) / math.exp(batch.sample_logp[b, t])
            expected_kl[b, t] = (r - 1) - math.log(r)
            expected_gap[b, t] = abs(math.log(r))
    np.testing.assert_allclose(got["kl"].numpy(), expected_kl, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got["abs_gap"].numpy(), expected_gap, rtol=1e-9)


PAPER_KL = {
    "k1": lambda p, q: math.log(p / q),
    "k2": lambda p, q: 0.5 * math.log(p / q) ** 2,
    "k3": lambda p, q: q / p - math.log(q / p) - 1,
}


@pytest.mark.parametrize("estimator", PAPER_KL)
def test_kl_and_its_gradient(estimator: Any) -> None:
    out, batch = case()

    def paper(logp_BT: np.ndarray) -> np.ndarray:
        expected = np.zeros((ROWS, WIDTH))
        for b, t in decisions():
            p, q = math.exp(logp_BT[b, t]), math.exp(batch.ref_logp[b, t])
            expected[b, t] = PAPER_KL[estimator](p, q)
        return expected

    loss_BT = KLToReference(estimator)(out, batch)
    logp_BT = out.logp.detach().numpy()
    np.testing.assert_allclose(loss_BT.detach().numpy(), paper(logp_BT), rtol=1e-9, atol=1e-12)
    loss_BT.sum().backward()
    slope_BT = finite_differences(lambda x: float(paper(x).sum()), logp_BT)
    np.testing.assert_allclose(out.logp.grad.numpy(), slope_BT, rtol=1e-6, atol=1e-8)


def test_likelihood_is_cross_entropy_of_the_softmax() -> None:
    logits_BTV = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    action_BT = torch.tensor([[0, 3, 1], [2, 2, 0]])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    logp_BT = logits_BTV.log_softmax(-1).gather(-1, action_BT[..., None])[..., 0]
    nan_BT = torch.full((2, 3), math.nan)
    batch = Batch(mask_BT, mask_BT.float(), nan_BT, nan_BT, nan_BT, torch.tensor([False, True]))
    NegativeLogLikelihood()(PolicyOut(logp_BT, nan_BT), batch).sum().backward()
    # The gradient of cross-entropy is softmax minus one-hot, on the four decisions alone.
    expected_BTV = logits_BTV.detach().softmax(-1) - torch.eye(4)[action_BT]
    expected_BTV[1, 1:] = 0
    torch.testing.assert_close(logits_BTV.grad, expected_BTV)


def paper_objective(name: str, batch: Batch, logp_BT: np.ndarray) -> float:
    """The loss of a whole batch, as printed: GRPO with beta 0.04, DAPO, Dr. GRPO."""
    high = 0.28 if name == "token" else 0.2
    total, num_tokens = 0.0, 0
    for b in range(ROWS):
        row = 0.0
        for t in range(LENGTHS[b]):
            old, adv = float(batch.old_logp[b, t]), float(batch.adv[b, t])
            row += paper_clipped(logp_BT[b, t], old, adv, 0.2, high, None)
            if name == "sequence":
                p, q = math.exp(logp_BT[b, t]), math.exp(batch.ref_logp[b, t])
                row += 0.04 * PAPER_KL["k3"](p, q)
        total += row / LENGTHS[b] if name == "sequence" else row
        num_tokens += LENGTHS[b]
    return total / {"sequence": ROWS, "token": num_tokens, "constant": ROWS * MAX_LEN}[name]


@pytest.mark.parametrize("kind", ["sequence", "token", "constant"])
def test_reduced_objectives_of_grpo_dapo_and_dr_grpo(kind: Any) -> None:
    out, batch = case(3)
    high = 0.28 if kind == "token" else 0.2
    loss_BT, _ = ClippedSurrogate(0.2, high)(out, batch)
    if kind == "sequence":
        loss_BT = loss_BT + 0.04 * KLToReference("k3")(out, batch)
    total = (decision_weight(batch.mask, kind) * loss_BT).sum()
    loss = total / denominator(batch.mask, kind, max_len=MAX_LEN)
    loss.backward()
    logp_BT = out.logp.detach().numpy()
    assert loss.item() == pytest.approx(paper_objective(kind, batch, logp_BT), rel=1e-6)
    slope_BT = finite_differences(lambda x: paper_objective(kind, batch, x), logp_BT)
    np.testing.assert_allclose(out.logp.grad.numpy(), slope_BT, rtol=1e-5, atol=1e-8)
