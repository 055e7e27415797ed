"""Preference losses against scalars written from the papers, golden values and gradient signs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rlft.losses.preference import dpo, ipo, kto, summed_logp

Four = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def pairs(seed: int = 0, num: int = 7) -> Four:
    rng = np.random.default_rng(seed)
    made = [torch.tensor(rng.normal(-20, 4, num)) for _ in range(4)]
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def margins(four: Four) -> list[float]:
    rows = zip(*(x.tolist() for x in four), strict=True)
    return [(c - rc) - (r - rr) for c, r, rc, rr in rows]


@pytest.mark.parametrize("seed", range(5))
def test_dpo_and_ipo_agree_with_the_papers(seed: int) -> None:
    four = pairs(seed)
    h = margins(four)
    for smoothing in (0.0, 0.2):
        expected = [
            -(1 - smoothing) * math.log(sigmoid(0.3 * x)) - smoothing * math.log(sigmoid(-0.3 * x))
            for x in h
        ]
        got = dpo(*four, beta=0.3, smoothing=smoothing)
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-9)
    got = ipo(*four, beta=0.3)
    np.testing.assert_allclose(got.detach().numpy(), [(x - 1 / 0.6) ** 2 for x in h], rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_dpo_s_gradient_is_the_one_of_the_paper(seed: int) -> None:
    """Section 4: -beta sigmoid(-beta h) on the chosen response, and its opposite on the rejected."""
    four = pairs(seed)
    dpo(*four, beta=0.3).sum().backward()
    expected = [-0.3 * sigmoid(-0.3 * x) for x in margins(four)]
    np.testing.assert_allclose(four[0].grad.numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(four[1].grad.numpy(), [-x for x in expected], rtol=1e-9)


def test_at_the_reference_nothing_is_known_yet() -> None:
    logp_P = torch.tensor([-3.0, -50.0], dtype=torch.float64)
    same = (logp_P, logp_P - 7, logp_P, logp_P - 7)
    assert dpo(*same).tolist() == pytest.approx([math.log(2)] * 2)
    assert ipo(*same, beta=0.25).tolist() == pytest.approx([4.0] * 2)
    assert kto(logp_P, logp_P, torch.tensor([True, False]), 0.0).tolist() == pytest.approx(
        [0.5] * 2
    )


def test_ipo_stops_at_its_margin_and_dpo_does_not() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    for h, sign in ((4.0, -1), (6.0, 1)):  # on either side of 1 / (2 beta) = 5
        chosen = torch.tensor([h], dtype=torch.float64, requires_grad=True)
        ipo(chosen, zero, zero, zero, beta=0.1).sum().backward()
        assert math.copysign(1, chosen.grad.item()) == sign
        chosen.grad = None
        dpo(chosen, zero, zero, zero, beta=0.1).sum().backward()
        assert chosen.grad.item() < 0


def test_kto_agrees_with_the_paper_and_takes_no_gradient_from_its_reference_point() -> None:
    chosen, _, ref, _ = pairs(3)
    desirable = torch.tensor([True, False, True, True, False, False, True])
    kl = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    got = kto(chosen, ref, desirable, kl, beta=0.2, weight_desirable=1.5, weight_undesirable=0.5)
    for i in range(7):
        gain = 0.2 * (chosen[i].item() - ref[i].item() - 0.8)
        wanted = 1.5 * (1 - sigmoid(gain)) if desirable[i] else 0.5 * (1 - sigmoid(-gain))
        assert got[i].item() == pytest.approx(wanted)
    got.sum().backward()
    assert kl.grad is None
    assert torch.equal(chosen.grad < 0, desirable)
    assert kto(chosen, ref, desirable, -5.0).tolist() == kto(chosen, ref, desirable, 0.0).tolist()


def test_summed_logp_reads_the_response_alone() -> None:
    logp_BT = torch.tensor([[-1.0, -2.0, math.nan], [-4.0, math.inf, -8.0]])
    mask_BT = torch.tensor([[True, True, False], [True, False, True]])
    assert summed_logp(logp_BT, mask_BT).tolist() == [-3.0, -12.0]


@pytest.mark.parametrize("fn", [dpo, ipo])
def test_order_of_pairs_does_not_matter_and_a_swap_of_labels_does(fn: Callable) -> None:
    four = pairs(1)
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    torch.testing.assert_close(fn(*(x[order] for x in four)), fn(*four)[order])
    assert not torch.allclose(fn(four[1], four[0], four[3], four[2]), fn(*four))


def test_bad_input_is_refused() -> None:
    four = pairs()
    with pytest.raises(ValueError, match=r"beta .* got 0"):
        dpo(*four, beta=0)
    with pytest.raises(ValueError, match=r"smoothing .* got 0\.6"):
        dpo(*four, smoothing=0.6)
    with pytest.raises(ValueError, match=r"one shape \[P\], got \[\[7\], \[3\]"):
        ipo(four[0], four[1][:3], *four[2:])
    with pytest.raises(ValueError, match="a bool"):
        kto(four[0], four[2], torch.ones(7), 0.0)
