"""Losses of pairs on batches: values against scalars, and what must not change them."""

import math

import pytest
import torch

from rlft.losses.pairs import BradleyTerry, PairLoss, pairs_of
from rlft.losses.preference import dpo, ipo
from rlft.types import Batch, PolicyOut

NAN = float("nan")


def batch(mask, adv, unit, ref):
    """A batch of demonstrations; adv, unit: one a row."""
    mask_BT = torch.tensor(mask, dtype=torch.bool)
    return Batch(
        mask=mask_BT,
        weight=mask_BT.float(),
        adv=torch.tensor(adv)[:, None].expand(mask_BT.shape),
        sample_logp=torch.full(mask_BT.shape, NAN),
        old_logp=torch.zeros(mask_BT.shape),
        on_policy=torch.zeros(len(mask), dtype=torch.bool),
        ref_logp=torch.tensor(ref),
        unit=None if unit is None else torch.tensor(unit),
    )


# Two pairs whose rows are mixed up, the rejected one of unit 4 first, and NaN where masked.
MASK = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]
LOGP = [[-1.0, -2.0, NAN], [-3.0, NAN, NAN], [-0.5, -0.5, -0.5], [-4.0, -1.0, NAN]]
REF = [[-1.0, -1.0, NAN], [-4.0, NAN, NAN], [-1.0, -1.0, -1.0], [-3.0, -1.0, NAN]]
SIGN, UNIT = [-1.0, 1.0, 1.0, -1.0], [4, 2, 4, 2]
H = {4: (-1.5 - -3.0) - (-3.0 - -2.0), 2: (-3.0 - -4.0) - (-5.0 - -4.0)}
"""Margin of log ratios of each unit, by hand: 2.5 and 2."""


def test_a_pair_s_loss_is_that_of_its_unit_on_both_of_its_rows():
    out = PolicyOut(torch.tensor(LOGP), torch.zeros(4, 3))
    loss, found = PairLoss(dpo, 0.2)(out, batch(MASK, SIGN, UNIT, REF))
    expected = [math.log1p(math.exp(-0.2 * H[u])) for u in UNIT]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)
    means = {name: float(value.nanmean()) for name, value in found.items()}
    assert means["pairs/margin"] == pytest.approx(0.2 * (H[4] + H[2]) / 2)
    assert means["pairs/accuracy"] == 1.0
    assert means["pairs/logp_chosen"] == pytest.approx((-1.5 - 3.0) / 2)
    assert means["pairs/logp_rejected"] == pytest.approx((-3.0 - 5.0) / 2)
    assert means["pairs/reward_rejected"] == pytest.approx(0.2 * (-1.0 - 1.0) / 2)
    loss, _ = PairLoss(ipo, 0.2)(out, batch(MASK, SIGN, UNIT, REF))
    assert loss.tolist() == pytest.approx([(H[u] - 2.5) ** 2 for u in UNIT], abs=1e-5)


def test_swapping_chosen_and_rejected_negates_the_margin():
    out = PolicyOut(torch.tensor(LOGP), torch.zeros(4, 3))
    _, found = PairLoss()(out, batch(MASK, SIGN, UNIT, REF))
    _, swapped = PairLoss()(out, batch(MASK, [-s for s in SIGN], UNIT, REF))
    assert float(found["pairs/margin"].nanmean()) == -float(swapped["pairs/margin"].nanmean())
    assert float(swapped["pairs/accuracy"].nanmean()) == 0.0


def test_bradley_terry_asks_for_a_margin_by_strength():
    score = torch.tensor([0.0, 1.0, 0.5, 1.0], requires_grad=True)
    out = PolicyOut(torch.zeros(4, 3), torch.zeros(4, 3), score=score)
    strong = [-3.0, 1.0, 3.0, -1.0]  # unit 4 three times as strong as unit 2
    loss, found = BradleyTerry(margin=0.5)(out, batch(MASK, strong, UNIT, REF))
    expected = {4: math.log1p(math.exp(-(0.5 - 1.5))), 2: math.log1p(math.exp(-(0.0 - 0.5)))}
    assert loss.tolist() == pytest.approx([expected[u] for u in UNIT], rel=1e-6)
    assert float(found["pairs/accuracy"].nanmean()) == 0.75, "a tie counts half"
    loss.sum().backward()
    # d/ds of -log sigmoid(d - m) is -sigmoid(-(d - m)); the pair's value stands on two rows.
    slope = {u: 2 / (1 + math.exp(x)) for u, x in ((4, 0.5 - 1.5), (2, 0.0 - 0.5))}
    signed = [-math.copysign(slope[u], s) for u, s in zip(UNIT, strong, strict=True)]
    assert score.grad.tolist() == pytest.approx(signed, rel=1e-6)


def test_rows_of_padding_are_in_no_pair():
    padded = batch([*MASK, [0, 0, 0]], [*SIGN, 0.0], [*UNIT, -1], [*REF, [NAN] * 3])
    chosen, rejected = pairs_of(padded)
    assert (chosen.tolist(), rejected.tolist()) == ([1, 2], [3, 0])
    nothing = batch([[0, 0]], [0.0], [-1], [[NAN, NAN]])
    loss, found = PairLoss()(PolicyOut(torch.zeros(1, 2), torch.zeros(1, 2)), nothing)
    assert loss.tolist() == [0.0]
    assert all(value.isnan().all() for value in found.values())


@pytest.mark.parametrize(
    "sign, unit, said",
    [
        (SIGN, None, "together=True"),
        ([-1.0, 1.0, -1.0, -1.0], UNIT, "one with an advantage above 0"),
        ([-1.0, 1.0, 0.0, -1.0], UNIT, "one with an advantage above 0"),
        (SIGN, [4, 2, 4, 1], "one with an advantage above 0"),
        ([1.0, 1.0, 1.0, -1.0], [4, 2, 4, 2], "one with an advantage above 0"),
    ],
)
def test_what_is_no_pair_is_refused(sign, unit, said):
    with pytest.raises(ValueError, match=said):
        pairs_of(batch(MASK, sign, unit, REF))
