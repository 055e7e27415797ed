"""The losses of the GRPO family against loops written from the papers, and their gradients.

Weights that carry no gradient are frozen before the finite differences are taken.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from loss_cases import LENGTHS, ROWS, WIDTH, case, decisions, finite_differences

from rlft.losses import CISPO, DPPO, GMPO, GSPO, SAPO, KLToReference, Reinforce, per_decision
from rlft.types import Batch, PolicyOut


def numbers(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return batch.old_logp.numpy(), batch.adv.numpy()


def paper_gspo(logp: np.ndarray, batch: Batch) -> np.ndarray:
    """One loss a row, with (prod of ratios)^(1/T); clip 0.02 and 0.05."""
    old, adv = numbers(batch)
    loss = np.zeros(ROWS)
    for b in range(ROWS):
        ratio = 1.0
        for t in range(LENGTHS[b]):
            ratio *= math.exp(logp[b, t]) / math.exp(old[b, t])
        s, a = ratio ** (1 / LENGTHS[b]), adv[b, 0]
        loss[b] = -min(s * a, min(max(s, 0.98), 1.05) * a)
    return loss


def paper_gmpo(logp: np.ndarray, batch: Batch) -> np.ndarray:
    """(prod |min(w A, clip(w) A)|)^(1/T) sgn A, the printed form; |A| = |A|^(T/T) comes out of it."""
    old, adv = numbers(batch)
    loss = np.zeros(ROWS)
    for b in range(ROWS):
        a, product = adv[b, 0], 1.0
        for t in range(LENGTHS[b]):
            w = math.exp(logp[b, t] - old[b, t])
            clipped = min(max(w, math.exp(-0.1)), math.exp(0.2))
            product *= abs(min(w * a, clipped * a))
        loss[b] = -math.copysign(product ** (1 / LENGTHS[b]), a)
    return loss


def paper_sapo(logp: np.ndarray, batch: Batch) -> np.ndarray:
    old, adv = numbers(batch)
    loss = np.zeros((ROWS, WIDTH))
    for b, t in decisions():
        tau = 1.0 if adv[b, t] > 0 else 1.05
        w = math.exp(logp[b, t] - old[b, t])
        loss[b, t] = -(4 / tau) / (1 + math.exp(-tau * (w - 1))) * adv[b, t]
    return loss


def frozen_weight(kind: str, logp: float, old: float, adv: float) -> float:
    """The factor of -A logp that carries no gradient."""
    w, p, q = math.exp(logp - old), math.exp(old), math.exp(logp)
    if kind == "reinforce":
        return 1.0
    if kind == "cispo":
        return min(max(w, 0.9), 1.2)
    tv = abs(q - p)
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    far, low, high = (tv, 0.02, 0.04) if kind == "tv" else (kl, 0.004, 0.008)
    wrong_way = (adv > 0 and q > p and far > high) or (adv < 0 and q < p and far > low)
    return 0.0 if wrong_way else min(w, 1.5)


WEIGHTED: dict[str, Any] = {
    "reinforce": Reinforce(),
    "cispo": CISPO(clip_low=0.1, clip_high=0.2),
    "tv": DPPO("tv", 0.02, 0.04, cap=1.5),
    "kl": DPPO("kl", 0.004, 0.008, cap=1.5),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["gspo", "gmpo", "sapo"])
def test_ratio_losses_and_their_gradients(name: str, seed: int) -> None:
    out, batch = case(seed)
    losses: dict[str, Any] = {
        "gspo": (GSPO(0.02, 0.05), paper_gspo),
        "gmpo": (GMPO(0.1, 0.2), paper_gmpo),
        "sapo": (SAPO(), paper_sapo),
    }
    fn, paper = losses[name]
    loss, _ = fn(out, batch)
    logp_BT = out.logp.detach().numpy()
    np.testing.assert_allclose(loss.detach().numpy(), paper(logp_BT, batch), rtol=1e-9)
    loss.sum().backward()
    slope_BT = finite_differences(lambda x: float(paper(x, batch).sum()), logp_BT)
    np.testing.assert_allclose(out.logp.grad.numpy(), slope_BT, rtol=1e-5, atol=1e-8)
    assert np.count_nonzero(slope_BT) > 0


@pytest.mark.parametrize("name", ["gspo", "gmpo"])
def test_some_rows_of_the_cases_are_clipped_and_some_are_not(name: str) -> None:
    seen = set()
    for seed in range(5):
        out, batch = case(seed)
        _, found = (GSPO(0.02, 0.05) if name == "gspo" else GMPO(0.1, 0.2))(out, batch)
        seen |= set(found["clip_fraction"][batch.mask].tolist())
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_losses_and_their_gradients(name: str, seed: int) -> None:
    out, batch = case(seed)
    old_BT, adv_BT = numbers(batch)
    logp_BT = out.logp.detach().numpy()
    weight_BT = np.zeros((ROWS, WIDTH))
    for b, t in decisions():
        weight_BT[b, t] = frozen_weight(name, logp_BT[b, t], old_BT[b, t], adv_BT[b, t])

    def paper(x_BT: np.ndarray) -> np.ndarray:
        loss = np.zeros((ROWS, WIDTH))
        for b, t in decisions():
            loss[b, t] = -weight_BT[b, t] * adv_BT[b, t] * x_BT[b, t]
        return loss

    value = WEIGHTED[name](out, batch)
    loss_BT = value[0] if isinstance(value, tuple) else value
    np.testing.assert_allclose(loss_BT.detach().numpy(), paper(logp_BT), rtol=1e-9)
    loss_BT.sum().backward()
    slope_BT = finite_differences(lambda x: float(paper(x).sum()), logp_BT)
    np.testing.assert_allclose(out.logp.grad.numpy(), slope_BT, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_corrected_k3_and_its_gradient(seed: int) -> None:
    out, batch = case(seed)

    def paper(logp_BT: np.ndarray) -> np.ndarray:
        expected = np.zeros((ROWS, WIDTH))
        for b, t in decisions():
            p, q = math.exp(logp_BT[b, t]), math.exp(batch.ref_logp[b, t])
            w = p / math.exp(batch.old_logp[b, t])
            expected[b, t] = w * (q / p - math.log(q / p) - 1)
        return expected

    logp_BT = out.logp.detach().numpy()
    loss_BT = KLToReference("k3_corrected")(out, batch)
    np.testing.assert_allclose(loss_BT.detach().numpy(), paper(logp_BT), rtol=1e-9, atol=1e-12)
    loss_BT.sum().backward()
    slope_BT = finite_differences(lambda x: float(paper(x).sum()), logp_BT)
    np.testing.assert_allclose(out.logp.grad.numpy(), slope_BT, rtol=1e-5, atol=1e-8)


# -- golden values and what the papers say of the shape


def one(adv: float, *gaps: float) -> tuple[PolicyOut, Batch]:
    """One row of decisions whose log ratios are `gaps`, at an old probability of 0.05."""
    gap_BT = torch.tensor([gaps], dtype=torch.float64)
    old_BT = torch.full_like(gap_BT, math.log(0.05))
    adv_BT, mask_BT = torch.full_like(gap_BT, adv), torch.ones_like(gap_BT, dtype=torch.bool)
    batch = Batch(mask_BT, mask_BT.double(), adv_BT, old_BT, old_BT, torch.tensor([True]))
    return PolicyOut((old_BT + gap_BT).requires_grad_(), gap_BT), batch


def slope(fn: Any, adv: float, *gaps: float) -> list[float]:
    """The gradient of each decision's log-prob, with the mean over the row's tokens."""
    out, batch = one(adv, *gaps)
    value = fn(out, batch)
    loss = per_decision("x", value[0] if isinstance(value, tuple) else value, batch.mask)
    return torch.autograd.grad(loss.mean(), out.logp)[0][0].tolist()


@pytest.mark.parametrize("ratio,gate", [(0.5, 1.5102), (1.0, 2.0), (1.5, 2.4898), (2.0, 2.9242)])
def test_golden_gate_of_sapo(ratio: float, gate: float) -> None:
    loss_BT, _ = SAPO()(*one(1.0, math.log(ratio)))
    assert -loss_BT.item() == pytest.approx(gate, abs=5e-5)


@pytest.mark.parametrize("adv", [2.0, -2.0])
@pytest.mark.parametrize(
    "fn", [GSPO(), GMPO(), SAPO(), SAPO(3, 0.5), CISPO(), DPPO(), DPPO("kl"), Reinforce()], ids=str
)
def test_on_policy_the_gradient_is_that_of_reinforce(fn: Any, adv: float) -> None:
    assert slope(fn, adv, 0.0, 0.0, 0.0) == pytest.approx([-adv / 3] * 3)


def test_gspo_of_equal_log_ratios_is_their_exponential() -> None:
    loss_B, found = GSPO(1, 1)(*one(1.0, 0.3, 0.3, 0.3))
    assert loss_B.tolist() == pytest.approx([-math.exp(0.3)])
    assert found["ratio"].tolist()[0] == pytest.approx([math.exp(0.3)] * 3)


def test_gspo_of_one_token_is_ppo() -> None:
    from rlft.losses import ClippedSurrogate

    for adv in (1.0, -1.0):
        for gap in (-0.5, -0.05, 0.0, 0.05, 0.5):
            row_B, _ = GSPO(0.1, 0.2)(*one(adv, gap))
            token_BT, _ = ClippedSurrogate(0.1, 0.2)(*one(adv, gap))
            assert row_B.item() == token_BT.item()


def test_gspo_token_form_has_the_gradient_of_the_sequence_form() -> None:
    """verl's form: log s_t = sg[log s] + logp_t - sg[logp_t], averaged over tokens."""
    gaps = (0.3, -0.2, 0.25)
    out, batch = one(1.5, *gaps)
    log_s = (out.logp - batch.old_logp).mean().detach() + out.logp - out.logp.detach()
    token_form = torch.autograd.grad((-1.5 * log_s.exp()).mean(), out.logp)[0][0]
    assert slope(GSPO(1, 1), 1.5, *gaps) == pytest.approx(token_form.tolist())


@pytest.mark.parametrize("ratio", [1.5, 30.0])
def test_a_token_far_above_its_old_ratio(ratio: float) -> None:
    """With A > 0: PPO and GMPO stop, CISPO goes on with a bounded weight, SAPO fades."""
    gap = math.log(ratio)
    assert slope(CISPO(1, 4), 1.0, gap) == pytest.approx([-min(ratio, 5.0)])
    assert slope(CISPO(0.2, 0.2), 1.0, gap) == pytest.approx([-1.2])
    assert slope(GMPO(), 1.0, gap) == [0.0]
    assert 0 < -slope(SAPO(), 1.0, gap)[0] < ratio
    # It rises from a probability of 0.05 by 0.025 or to 1.5: in probability only the second is far.
    moves = slope(DPPO("tv", 0.2, 0.2), 1.0, gap)[0]
    assert moves == (pytest.approx(-1.5) if ratio == 1.5 else 0)


def test_dppo_looks_at_the_direction_of_the_push() -> None:
    """The same move, pushed further by one sign of the advantage and taken back by the other."""
    up, down = math.log(10), -math.log(10)
    assert slope(DPPO("tv", 0.04, 0.2), 1.0, up) == [0.0]
    assert slope(DPPO("tv", 0.04, 0.2), -1.0, up) == pytest.approx([10.0])
    assert slope(DPPO("tv", 0.04, 0.2), -1.0, down) == [0.0]
    assert slope(DPPO("tv", 0.04, 0.2), 1.0, down) == pytest.approx([-0.1])
    assert slope(DPPO("tv", 0.2, 0.2, cap=20), -1.0, math.log(30)) != slope(
        DPPO("tv", 0.2, 0.2, cap=10), -1.0, math.log(30)
    )


def test_gmpo_lets_one_wild_token_count_little() -> None:
    """The geometric mean of ratios 1, 1, 100 (unclipped) is 100^(1/3); a clipped token keeps the others."""
    loss_B, _ = GMPO(9, 9)(*one(1.0, 0.0, 0.0, math.log(100)))
    assert -loss_B.item() == pytest.approx(100 ** (1 / 3))
    first, second, wild = slope(GMPO(), 1.0, 0.0, 0.0, math.log(100))
    assert wild == 0 and first == second == pytest.approx(-math.exp(0.4 / 3) / 3)


def test_luspo_is_gspo_by_length() -> None:
    """Token aggregation of a row loss: each row counts by its number of tokens."""
    out, batch = case(1)
    loss_B, _ = GSPO()(out, batch)
    total = per_decision("x", loss_B, batch.mask).sum()
    expected = sum(n * x for n, x in zip(LENGTHS, loss_B.tolist(), strict=True))
    assert total.item() == pytest.approx(expected)
