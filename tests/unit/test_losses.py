"""Properties of the losses: invariances, gradients that must vanish, refusals."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch

import rlft.losses
from rlft.losses import (
    CISPO,
    DPPO,
    GMPO,
    GSPO,
    SAPO,
    ClippedSurrogate,
    GeometricReject,
    KLToReference,
    NegativeLogLikelihood,
    Reinforce,
    SequenceMask,
    SequenceReject,
    SequenceTruncate,
    TokenMask,
    TokenReject,
    TokenTruncate,
    decision_weight,
    denominator,
    mismatch,
    per_decision,
)
from rlft.losses.corrected import Corrected, with_effective_share
from rlft.types import Batch, PolicyOut, Term

NAN = math.nan
CORRECTIONS: list[Any] = [
    TokenTruncate(1.1),
    TokenMask(0.9, 1.1),
    SequenceTruncate(1.1),
    SequenceMask(0.9, 2),
    TokenReject(0.9, 1.1),
    SequenceReject(0.9, 2),
    GeometricReject(0.9, 1.1),
]
LOSSES: list[Any] = [
    ClippedSurrogate(),
    ClippedSurrogate(dual_clip=3),
    GSPO(0.1, 0.1),
    GMPO(0.1, 0.1),
    CISPO(0.2, 0.1),
    SAPO(),
    DPPO("tv", 0.02, 0.02),
    DPPO("kl", 0.01, 0.01),
    *(Corrected(ClippedSurrogate(), (c,)) for c in CORRECTIONS),
    Corrected(GSPO(), (TokenTruncate(1.1), SequenceReject(0.5, 2))),
    *(KLToReference(k) for k in ("k1", "k2", "k3", "k3_corrected")),
    Reinforce(),
    NegativeLogLikelihood(),
]
UNBOUNDED: list[Any] = LOSSES[-2:]  # their value is the log-prob itself
KINDS = ["token", "sequence", "constant"]


def case(
    seed: int = 0, rows: int = 6, width: int = 5, junk: float = NAN
) -> tuple[PolicyOut, Batch]:
    """Ragged rows, row 1 without decisions, the last injected; `junk` wherever masked."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=g)
    mask[1] = False

    def draw(spread: float) -> torch.Tensor:
        x = -2 + spread * torch.randn(rows, width, generator=g, dtype=torch.float64)
        return x.masked_fill(~mask, junk)

    logp, old_logp, sample_logp, ref_logp, adv = draw(0.3), draw(0.3), draw(0.3), draw(1), draw(2)
    on_policy = torch.arange(rows) < rows - 1
    sample_logp[-1] = NAN
    batch = Batch(mask, mask.float(), adv + 2, sample_logp, old_logp, on_policy, ref_logp)
    return PolicyOut(logp.requires_grad_(), torch.zeros_like(logp)), batch


def value(fn: Any, out: PolicyOut, batch: Batch) -> torch.Tensor:
    result = fn(out, batch)
    return per_decision("x", result[0] if isinstance(result, tuple) else result, batch.mask)


def gradient(fn: Any, logp_BT: torch.Tensor, batch: Batch) -> torch.Tensor:
    logp_BT = logp_BT.detach().clone().requires_grad_()
    total = (value(fn, PolicyOut(logp_BT, torch.zeros_like(logp_BT)), batch) * batch.weight).sum()
    return torch.autograd.grad(total, logp_BT)[0]


def rows_of(batch: Batch, rows: Any) -> Batch:
    fields = dataclasses.fields(batch)
    given = {f.name: x for f in fields if (x := getattr(batch, f.name)) is not None}
    return Batch(**{name: x[rows] for name, x in given.items()})


# -- masks and padding


@pytest.mark.parametrize("fn", LOSSES, ids=str)
@pytest.mark.parametrize("junk", [NAN, math.inf, -math.inf, 1e30])
def test_what_is_masked_has_no_value_and_no_gradient(fn: Any, junk: float) -> None:
    out, batch = case(junk=junk)
    out_clean, batch_clean = case(junk=0.0)
    loss_BT = value(fn, out, batch)
    assert loss_BT[~batch.mask].abs().sum() == 0
    torch.testing.assert_close(loss_BT, value(fn, out_clean, batch_clean))
    grad_BT = gradient(fn, out.logp, batch)
    assert grad_BT[~batch.mask].abs().sum() == 0
    torch.testing.assert_close(grad_BT, gradient(fn, out_clean.logp, batch_clean))
    assert grad_BT.abs().sum() > 0


@pytest.mark.parametrize("fn", LOSSES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_decisions_gives_zero_not_nan(fn: Any, kind: Any) -> None:
    out, batch = case()
    batch = dataclasses.replace(batch, mask=torch.zeros_like(batch.mask))
    total = (value(fn, out, batch) * decision_weight(batch.mask, kind)).sum()
    loss = total / denominator(batch.mask, kind, max_len=5)
    loss.backward()
    assert loss.item() == 0
    assert out.logp.grad.abs().sum() == 0


@pytest.mark.parametrize("fn", LOSSES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_the_loss(fn: Any, kind: Any) -> None:
    out, batch = case()
    pad = torch.nn.functional.pad
    wide = {
        f.name: pad(x, (0, 3), value=0 if x.dtype == torch.bool else NAN) if x.ndim == 2 else x
        for f in dataclasses.fields(batch)
        if (x := getattr(batch, f.name)) is not None
    }
    wide_out = PolicyOut(pad(out.logp, (0, 3)), pad(out.entropy, (0, 3)))

    def reduced(out: PolicyOut, batch: Batch) -> float:
        weight_BT = decision_weight(batch.mask, kind)
        total = (value(fn, out, batch) * weight_BT).sum()
        return (total / denominator(batch.mask, kind, max_len=5)).item()

    assert reduced(wide_out, Batch(**wide)) == pytest.approx(reduced(out, batch), rel=1e-12)


@pytest.mark.parametrize("fn", LOSSES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_whole_batch(fn: Any, kind: Any) -> None:
    out, batch = case()
    whole = dataclasses.replace(batch, weight=decision_weight(batch.mask, kind))
    divisor = denominator(batch.mask, kind, max_len=5)
    expected_BT = gradient(fn, out.logp, whole) / divisor
    got = []
    for rows in ([0], [1, 2], [3, 4, 5]):
        part = rows_of(batch, rows)
        part = dataclasses.replace(part, weight=decision_weight(part.mask, kind))
        got.append(gradient(fn, out.logp[rows], part) / divisor)
    torch.testing.assert_close(torch.cat(got), expected_BT)


# -- the surrogate


def test_on_policy_gradient_is_that_of_reinforce() -> None:
    out, batch = case()
    batch = dataclasses.replace(batch, old_logp=out.logp.detach())
    grad_BT = gradient(ClippedSurrogate(dual_clip=3), out.logp, batch)
    torch.testing.assert_close(grad_BT, torch.where(batch.mask, -batch.adv, 0.0))


@pytest.mark.parametrize(
    "ratio,adv,slope,clipped",
    [
        (1.5, 1.0, 0.0, 1),  # already likelier than the clip allows: stop pushing up
        (1.25, 1.0, -1.25, 0),  # inside the upper clip of 0.28
        (0.5, 1.0, -0.5, 0),  # below, and pushed back up
        (0.5, -1.0, 0.0, 1),  # already unlikelier than the clip allows
        (0.85, -1.0, 0.85, 0),  # inside the lower clip of 0.2
        (2.5, -1.0, 2.5, 0),  # likelier and bad: PPO leaves it unbounded ...
        (3.5, -1.0, 0.0, 1),  # ... until the dual clip at 3
    ],
)
def test_where_the_clip_holds(ratio: float, adv: float, slope: float, clipped: int) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = Batch(one.bool(), one, adv * one, one * NAN, -one, torch.tensor([True]))
    logp_BT = (math.log(ratio) * one - one).requires_grad_()
    loss_fn = ClippedSurrogate(0.2, 0.28, dual_clip=3.0)
    loss_BT, diagnostics = loss_fn(PolicyOut(logp_BT, one), batch)
    loss_BT.sum().backward()
    assert logp_BT.grad.item() == pytest.approx(slope)
    assert diagnostics["clip_fraction"].item() == clipped
    assert diagnostics["ratio"].item() == pytest.approx(ratio)


@pytest.mark.parametrize("gap", [-1e4, 1e4, math.inf])
def test_absurd_ratios_stay_finite(gap: float) -> None:
    one = torch.ones(1, 2)
    adv_BT = torch.tensor([[1.0, -1.0]])
    batch = Batch(one.bool(), one, adv_BT, one * -1, one * -1, torch.tensor([True]), one * -1)
    for fn in LOSSES:
        if fn in UNBOUNDED or isinstance(fn, CISPO | DPPO):  # the log-prob itself is a factor
            continue
        logp_BT = one * gap
        assert torch.isfinite(value(fn, PolicyOut(logp_BT, one), batch)).all()
        assert torch.isfinite(gradient(fn, logp_BT, batch)).all()


def test_diagnostics_are_zero_where_masked_and_carry_no_gradient() -> None:
    out, batch = case()
    _, diagnostics = Corrected(ClippedSurrogate())(out, batch)
    assert set(diagnostics) == {"clip_fraction", "ratio", "is_weight", "is_weight_squared"}
    for x_BT in diagnostics.values():
        assert not x_BT.requires_grad
        assert x_BT[~batch.mask].abs().sum() == 0
        assert x_BT[batch.mask].abs().sum() > 0


def test_a_longer_wrong_answer_costs_more_only_without_length_normalisation() -> None:
    """Dr. GRPO: doubling the length of a wrong answer doubles its penalty; in GRPO it does not."""

    def penalty(length: int, kind: Any) -> tuple[float, float]:
        mask_BT = torch.arange(8) < torch.tensor([[length], [4]])
        logp_BT = torch.full((2, 8), -1.0, requires_grad=True)
        adv_BT = torch.tensor([[-1.0], [1.0]]).expand(2, 8)
        old_BT, weight_BT = logp_BT.detach(), decision_weight(mask_BT, kind)
        batch = Batch(mask_BT, weight_BT, adv_BT, old_BT, old_BT, torch.tensor([True, True]))
        loss_BT, _ = ClippedSurrogate()(PolicyOut(logp_BT, old_BT), batch)
        share_B = (loss_BT * weight_BT).sum(1) / denominator(mask_BT, kind, max_len=8)
        share_B.sum().backward()
        return share_B[0].item(), logp_BT.grad[0].sum().item()

    assert penalty(3, "constant") == pytest.approx((3 / 16, 3 / 16))
    assert penalty(6, "constant") == pytest.approx((6 / 16, 6 / 16))
    assert penalty(3, "sequence") == penalty(6, "sequence") == pytest.approx((1 / 2, 1 / 2))
    assert penalty(3, "token") == pytest.approx((3 / 7, 3 / 7))


# -- the correction


@pytest.mark.parametrize("correction", CORRECTIONS, ids=str)
def test_equal_engine_and_learner_mean_no_correction(correction: Any) -> None:
    out, batch = case()
    batch = dataclasses.replace(batch, sample_logp=batch.old_logp)
    with_it, _ = Corrected(ClippedSurrogate(), (correction,))(out, batch)
    without, _ = ClippedSurrogate()(out, batch)
    assert torch.equal(with_it, without)
    gaps = mismatch(batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
    assert all(x_BT.abs().sum() == 0 for x_BT in gaps.values())


@pytest.mark.parametrize("correction", CORRECTIONS, ids=str)
def test_the_weight_has_no_gradient(correction: Any) -> None:
    _, batch = case()
    old_BT = batch.old_logp.clone().requires_grad_()
    weight_BT = correction(old_BT, batch.sample_logp.requires_grad_(), batch.mask, batch.on_policy)
    assert not weight_BT.requires_grad
    gaps = mismatch(old_BT, batch.sample_logp, batch.mask, batch.on_policy)
    assert not any(x_BT.requires_grad for x_BT in gaps.values())


@pytest.mark.parametrize("correction", CORRECTIONS, ids=str)
def test_rows_the_policy_did_not_choose_have_weight_one(correction: Any) -> None:
    _, batch = case()
    stale_BT = batch.sample_logp.clone()
    stale_BT[-1] = -30.0  # a finite log-prob of tokens that were overwritten since
    for sample_BT in (batch.sample_logp, stale_BT):
        weight_BT = correction(batch.old_logp, sample_BT, batch.mask, batch.on_policy)
        assert torch.equal(weight_BT[-1], batch.mask[-1].to(weight_BT.dtype))
        assert not torch.equal(weight_BT, batch.mask.to(weight_BT.dtype))
    assert mismatch(batch.old_logp, stale_BT, batch.mask, batch.on_policy)["kl"][-1].sum() == 0


@pytest.mark.parametrize("correction", CORRECTIONS, ids=str)
def test_a_missing_log_prob_of_a_sampled_token_is_not_hidden(correction: Any) -> None:
    _, batch = case()
    sample_BT = batch.sample_logp.clone()
    sample_BT[0, 0] = NAN
    weight_BT = correction(batch.old_logp, sample_BT, batch.mask, batch.on_policy)
    assert weight_BT[0, 0].isnan()
    assert weight_BT[1:].isfinite().all()


def test_effective_share_is_that_of_the_formula() -> None:
    weight_N = torch.tensor([1.0, 2.0, 0.5, 0.0])
    means = {"is_weight": weight_N.mean().item(), "is_weight_squared": (weight_N**2).mean().item()}
    expected = weight_N.sum().item() ** 2 / (weight_N**2).sum().item() / 4
    got = with_effective_share({**means, "lr": 1.0})
    assert got == {
        "is_weight": 0.875,
        "lr": 1.0,
        "is_weight/effective_share": pytest.approx(expected),
    }
    even = with_effective_share({"is_weight": 0.5, "is_weight_squared": 0.25})
    assert even["is_weight/effective_share"] == pytest.approx(1)
    none = with_effective_share({"is_weight": 0.0, "is_weight_squared": 0.0})
    assert none["is_weight/effective_share"] == 0
    assert with_effective_share({"lr": 1.0}) == {"lr": 1.0}


def test_corrections_multiply() -> None:
    out, batch = case()
    both = (TokenTruncate(1.1), SequenceReject(0.9, 2))
    _, diagnostics = Corrected(ClippedSurrogate(), both)(out, batch)
    args = (batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
    expected_BT = both[0](*args) * both[1](*args)
    torch.testing.assert_close(diagnostics["is_weight"], expected_BT)
    assert 0 < expected_BT.count_nonzero() < batch.mask.sum()


def test_a_rejection_is_one_or_zero_and_of_the_window() -> None:
    _, batch = case()
    args = (batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
    for reject, mask in ((TokenReject, TokenMask), (SequenceReject, SequenceMask)):
        kept_BT = reject(0.9, 1.1)(*args)
        assert set(kept_BT.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(kept_BT, (mask(0.9, 1.1)(*args) > 0).to(kept_BT.dtype))


def test_the_geometric_window_does_not_see_length() -> None:
    """The same gap on each token: 20 tokens are accepted like one, though their product is far off."""
    mask_BT = torch.arange(20) < torch.tensor([[1], [20]])
    old_BT = torch.full((2, 20), -1.0)
    args = (old_BT, old_BT - 0.04, mask_BT, torch.tensor([True, True]))
    assert torch.equal(GeometricReject(0.95, 1.05)(*args), mask_BT.float())
    assert SequenceReject(0.95, 1.05)(*args).sum(1).tolist() == [1, 0]
    assert GeometricReject(0.97, 1.03)(*args).sum() == 0


def test_sequence_weights_are_products_of_token_weights() -> None:
    _, batch = case()
    args = (batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
    token_BT = TokenTruncate(math.inf)(*args)
    sequence_BT = SequenceTruncate(math.inf)(*args)
    product_B1 = torch.where(batch.mask, token_BT, 1.0).prod(1, keepdim=True)
    torch.testing.assert_close(sequence_BT, product_B1 * batch.mask)


def test_truncated_and_masked_weights_agree_inside_the_window() -> None:
    _, batch = case()
    args = (batch.old_logp, batch.sample_logp, batch.mask, batch.on_policy)
    raw_BT, cut_BT = TokenTruncate(math.inf)(*args), TokenTruncate(1.1)(*args)
    kept_BT = TokenMask(0.9, 1.1)(*args)
    inside_BT = (raw_BT >= 0.9) & (raw_BT <= 1.1)
    assert torch.equal(kept_BT, raw_BT * inside_BT)
    assert torch.equal(cut_BT[inside_BT], raw_BT[inside_BT])
    assert cut_BT.max() == pytest.approx(1.1)
    assert raw_BT.max() > 1.1


def test_mismatch_estimates_the_kl_from_engine_to_learner() -> None:
    engine_V, learner_V = categorical(0), categorical(1)
    one = torch.ones(1, 4, dtype=torch.bool)
    gaps = mismatch(learner_V.log()[None], engine_V.log()[None], one, torch.tensor([True]))
    expected = float((engine_V * (engine_V / learner_V).log()).sum())
    assert float((engine_V * gaps["kl"][0]).sum()) == pytest.approx(expected)


# -- the KL penalty


def categorical(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(4, generator=g, dtype=torch.float64).softmax(0)


def estimates(estimator: Any, logp_V: torch.Tensor, ref_V: torch.Tensor) -> torch.Tensor:
    """The estimate for each of the actions, as one row of decisions."""
    none, old_BT = torch.zeros_like(ref_V)[None], logp_V.detach()[None]
    batch = Batch(none == 0, none, none, none, old_BT, torch.tensor([True]), ref_V.log()[None])
    return KLToReference(estimator)(PolicyOut(logp_V[None], none), batch)[0]


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    pi_V, ref_V = categorical(0), categorical(1)
    kl = float((pi_V * (pi_V / ref_V).log()).sum())
    mean = {k: float((pi_V * estimates(k, pi_V.log(), ref_V)).sum()) for k in ("k1", "k2", "k3")}
    assert mean["k1"] == pytest.approx(kl)
    assert mean["k3"] == pytest.approx(kl)
    assert abs(mean["k2"] - kl) > 0.01 * kl


def test_which_gradient_each_estimator_follows() -> None:
    """k1: none. k2, k3_corrected: KL(policy || reference). k3: KL(reference || policy)."""
    logits_V = categorical(0).log().requires_grad_()
    ref_V = categorical(1)

    def grad_of(scalar: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(scalar, logits_V)[0]

    pi_V = logits_V.softmax(0)
    forward = grad_of((pi_V * (pi_V / ref_V).log()).sum())
    pi_V = logits_V.softmax(0)
    reverse = grad_of((ref_V * (ref_V / pi_V).log()).sum())
    got = {}
    for k in ("k1", "k2", "k3", "k3_corrected"):
        logp_V = logits_V.log_softmax(0)
        # Actions are drawn first, then the loss is differentiated: the weight has no gradient.
        got[k] = grad_of((logp_V.exp().detach() * estimates(k, logp_V, ref_V)).sum())
    torch.testing.assert_close(got["k1"], torch.zeros_like(ref_V))
    torch.testing.assert_close(got["k2"], forward)
    torch.testing.assert_close(got["k3"], reverse)
    torch.testing.assert_close(got["k3_corrected"], forward)
    assert (forward - reverse).abs().max() > 0.01


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_positive_and_zero_only_if_equal(estimator: Any) -> None:
    # float32, down to gaps where `exp(d) - 1 - d` would already be rounding noise.
    size_V = torch.logspace(-3, 1.2, 200)
    gap_V = torch.cat([-size_V, size_V])
    k_V = estimates(estimator, -gap_V, torch.ones(400))
    assert (k_V > 0).all()
    small_V = gap_V.abs() < 2e-3
    torch.testing.assert_close(k_V[small_V], gap_V[small_V] ** 2 / 2, rtol=1e-2, atol=0)
    assert estimates(estimator, torch.full((4,), -0.7), torch.full((4,), -0.7).exp()).max() < 1e-12


def test_k1_is_odd_and_k2_is_even() -> None:
    logp_V = categorical(0).log()
    one_V = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(estimates("k1", logp_V, one_V), -estimates("k1", -logp_V, one_V))
    torch.testing.assert_close(estimates("k2", logp_V, one_V), estimates("k2", -logp_V, one_V))
    assert (estimates("k1", logp_V, one_V) < 0).all()  # the policy finds them less likely


def test_the_reference_is_named_as_a_need_and_asked_for() -> None:
    assert Term("kl", KLToReference()).needs == {"ref_logp"}
    assert Term("policy", ClippedSurrogate()).needs == frozenset()
    out, batch = case()
    with pytest.raises(ValueError, match=r"needs batch\.ref_logp"):
        KLToReference()(out, dataclasses.replace(batch, ref_logp=None))


# -- aggregation


def test_golden_weights_and_denominators() -> None:
    mask_BT = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    third = pytest.approx(1 / 3)
    assert decision_weight(mask_BT, "token").tolist() == mask_BT.float().tolist()
    assert decision_weight(mask_BT, "constant").tolist() == mask_BT.float().tolist()
    assert decision_weight(mask_BT, "sequence").tolist() == [
        [third, third, 0, third],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
    ]
    assert denominator(mask_BT, "token") == 4
    assert denominator(mask_BT, "sequence") == 2  # the empty row is not in the mean
    assert denominator(mask_BT, "constant", max_len=10) == 30  # but is in the constant


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_the_mean_of_a_constant_loss_is_that_constant(kind: Any) -> None:
    _, batch = case()
    total = (2.5 * decision_weight(batch.mask, kind)).sum()
    assert float(total / denominator(batch.mask, kind)) == pytest.approx(2.5)


def test_aggregation_refusals() -> None:
    mask_BT = torch.ones(2, 3, dtype=torch.bool)
    for call in (decision_weight, denominator):
        with pytest.raises(ValueError, match=r"token, sequence, constant; got 'tokens'.*'token'"):
            call(mask_BT, "tokens")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="bool"):
            call(mask_BT.float(), "token")
        with pytest.raises(ValueError, match=r"\[3\]"):
            call(mask_BT[0], "token")
    for max_len in (None, 0, -1):
        with pytest.raises(ValueError, match="max_len must be a positive"):
            denominator(mask_BT, "constant", max_len=max_len)


# -- construction


@pytest.mark.parametrize("fn", [*LOSSES, *CORRECTIONS], ids=str)
def test_pickled_losses_are_equal_and_frozen(fn: Any) -> None:
    assert pickle.loads(pickle.dumps(fn)) == fn
    if not isinstance(fn, Corrected):
        assert getattr(rlft.losses, type(fn).__name__) is type(fn)
    for field in dataclasses.fields(fn):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(fn, field.name, 1.0)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: ClippedSurrogate(clip_low=1.5), r"clip_low must be .* \[0, 1\], got 1.5"),
        (lambda: ClippedSurrogate(clip_high=-0.1), "clip_high .* got -0.1"),
        (lambda: ClippedSurrogate(clip_high=NAN), "clip_high .* got nan"),
        (lambda: ClippedSurrogate(clip_high="2e-1"), "clip_high must be a number .* '2e-1'"),  # type: ignore[arg-type]
        (lambda: ClippedSurrogate(dual_clip=1), "dual_clip must be above 1"),
        (lambda: ClippedSurrogate(dual_clip=math.inf), "dual_clip .* finite"),
        (lambda: ClippedSurrogate(dual_clip=True), "dual_clip must be a number .* got True"),
        (lambda: GSPO(clip_low=2), r"clip_low must be .* \[0, 1\], got 2"),
        (lambda: GMPO(clip_high=-1), "clip_high .* got -1"),
        (lambda: CISPO(clip_low=-1), "clip_low .* got -1"),
        (lambda: SAPO(tau_neg=0), "tau_neg must be above 0 and finite, got 0"),
        (lambda: DPPO("tvd"), "tv, kl; got 'tvd'.*mean 'tv'"),  # type: ignore[arg-type]
        (lambda: DPPO(cap=0.5), "cap .* got 0.5"),
        (lambda: TokenReject(1.5, 2), "low .* got 1.5"),
        (lambda: GeometricReject(0.5, 0.9), "high .* got 0.9"),
        (lambda: TokenTruncate(0.5), "cap .* got 0.5"),
        (lambda: SequenceTruncate(NAN), "cap .* got nan"),
        (lambda: TokenMask(1.2, 2), "low .* got 1.2"),
        (lambda: TokenMask(0.5, 0.9), "high .* got 0.9"),
        (lambda: SequenceMask(-1, 2), "low .* got -1"),
        (lambda: SequenceMask(0.5, None), "high .* got None"),  # type: ignore[arg-type]
        (lambda: KLToReference("k4"), "k1, k2, k3, k3_corrected; got 'k4'"),  # type: ignore[arg-type]
    ],
)
def test_bad_fields_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_tensor_of_another_shape_is_named_not_broadcast() -> None:
    out, batch = case(rows=5, width=5)
    for name in ("adv", "old_logp", "sample_logp"):
        with pytest.raises(ValueError, match=rf"{name} must have .* \[5, 5\]; got \[5\]"):
            Corrected(ClippedSurrogate())(out, dataclasses.replace(batch, **{name: torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"on_policy must be \[B\] = \[5\], got \[4\]"):
        Corrected(ClippedSurrogate())(
            out, dataclasses.replace(batch, on_policy=batch.on_policy[:4])
        )
    with pytest.raises(ValueError, match="logp must have"):
        NegativeLogLikelihood()(PolicyOut(out.logp[0], out.entropy), batch)
